//! The planner against brute force, and the replay against plans that were spoilt.

use std::collections::BTreeSet;

use super::frontier::{best_within, frontier};
use super::pace::{Pace, Work, pace};
use super::*;
use proptest::prelude::*;

const BYTES: u64 = ALIGNMENT;

fn equal_stage(blocks: usize, nanos: u64, passes: u32) -> Stage {
    let block = |index: usize| Block { name: index.to_string(), bytes: BYTES, nanos, hold: false };
    Stage {
        name: "denoise".into(),
        component: "dit".into(),
        blocks: (0..blocks).map(block).collect(),
        passes,
        shapes: vec![Shape {
            name: "whole".into(),
            activation_bytes: 0,
            slowdown_ppm: 0,
            exact: true,
        }],
        residency: Residency::Drop,
    }
}

/// A request in which one copy takes `copy_nanos` and `places` blocks fit on the device.
fn equal_request(stage: Stage, copy_nanos: u64, places: u64) -> Request {
    let link = Link { bytes_per_second: 1 << 45, latency_nanos: copy_nanos - 1 };
    Request {
        machine: Machine {
            device_bytes: places * BYTES,
            device_fixed_bytes: 0,
            host_bytes: 1 << 40,
            host_fixed_bytes: 0,
            window_bytes: 0,
            bus: link,
            files: link,
        },
        stages: vec![stage],
        max_slots: 8,
        stable_slots: false,
        host_copies: false,
    }
}

/// The best over every set of streamed blocks and every number of slots.
fn brute_force(request: &Request, places: usize) -> (u64, u64) {
    let stage = &request.stages[0];
    let blocks = stage.blocks.len();
    let uses: Vec<u64> = stage.blocks.iter().map(|block| block.nanos).collect();
    let copies = vec![request.machine.bus.nanos(BYTES); blocks];
    let mut best = (u64::MAX, u64::MAX);
    for mask in 0_u32..1 << blocks {
        let streamed: Vec<bool> = (0..blocks).map(|block| mask >> block & 1 == 1).collect();
        let count = mask.count_ones() as usize;
        for slots in 1..=8_usize {
            if blocks - count + if count == 0 { 0 } else { slots } > places {
                continue;
            }
            let passes = stage.passes;
            let Pace { nanos, .. } = pace(&Work {
                uses: &uses,
                copies: &copies,
                streamed: &streamed,
                slots,
                stable: false,
                passes,
            });
            let moved = (blocks - count) as u64 + count as u64 * u64::from(passes);
            best = best.min((nanos, moved * BYTES));
        }
    }
    best
}

/// Fewest copies that any choice of victims needs for `cycles` passes, the weights of the first
/// pass being there or not as suits it best.
fn fewest_copies(blocks: usize, places: usize, cycles: usize) -> usize {
    let mut states: Vec<(u32, usize)> = (0_u32..1 << blocks)
        .filter(|set| set.count_ones() as usize == places)
        .map(|set| (set, 0))
        .collect();
    for wanted in (0..cycles).flat_map(|_| 0..blocks) {
        let mut least = std::collections::BTreeMap::new();
        for &(set, copies) in &states {
            let mut reach = |set: u32, copies: usize| {
                let known = least.entry(set).or_insert(usize::MAX);
                *known = copies.min(*known);
            };
            if set >> wanted & 1 == 1 {
                reach(set, copies);
                continue;
            }
            for victim in (0..blocks).filter(|block| set >> block & 1 == 1) {
                reach(set & !(1 << victim) | 1 << wanted, copies + 1);
            }
        }
        states = least.into_iter().collect();
    }
    states.iter().map(|(_, copies)| *copies).min().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_set_of_streamed_blocks_is_better(
        blocks in 2_usize..=8,
        places in 1_u64..=8,
        nanos in 0_u64..60,
        copy_nanos in 1_u64..60,
        passes in 1_u32..40,
    ) {
        let request = equal_request(equal_stage(blocks, nanos, passes), copy_nanos, places);
        let found = plan(&request).unwrap();
        let best = brute_force(&request, places as usize);
        prop_assert_eq!((found.nanos, found.copied_bytes), best);
    }
}

#[test]
fn copies_are_the_fewest_that_any_choice_of_victims_needs() {
    for blocks in 2..=8_usize {
        for places in 1..blocks {
            // Enough computing to hide everything: traffic alone decides.
            let stage = equal_stage(blocks, 1_000_000, 1000);
            let request = equal_request(stage, 1, places as u64);
            let slots = if places == 1 { 1 } else { 2 };
            let link = request.machine.bus;
            let ways = frontier(&request, &request.stages[0], link);
            let choice = best_within(&ways, request.machine.device_bytes).unwrap();
            let streamed = choice.streamed.iter().filter(|one| **one).count();
            // While one block is in use the next may be on its way: that slot holds nothing of
            // use, and the rest is Belady's. Over `blocks - 1` passes it is a whole number.
            let rounds = blocks - 1;
            let room = places - (choice.slots - 1);
            let least =
                fewest_copies(blocks, room, 3 * rounds) - fewest_copies(blocks, room, 2 * rounds);
            assert_eq!(streamed, least.div_ceil(rounds), "{blocks} blocks, {places} places");
            assert!(choice.slots <= slots, "{blocks} blocks, {places} places: {choice:?}");
        }
    }
}

fn spoilt(change: impl FnOnce(&mut Vec<Action>)) -> Result<Timeline, Fault> {
    let request = equal_request(equal_stage(5, 10, 3), 25, 3);
    let found = plan(&request).unwrap();
    let mut actions = found.stages[0].actions(3);
    change(&mut actions);
    let scene = Scene {
        bytes: &[BYTES; 5],
        uses: &[10],
        copies: &[25; 5],
        arena_bytes: found.stages[0].arena_bytes,
        places: &found.stages[0].places,
        passes: 3,
    };
    replay(&scene, &actions)
}

fn position(actions: &[Action], wanted: impl Fn(&Action) -> bool, count: usize) -> usize {
    let places = actions.iter().enumerate().filter(|(_, action)| wanted(action));
    places.map(|(index, _)| index).nth(count).unwrap()
}

#[test]
fn an_unspoilt_plan_plays() {
    let timeline = spoilt(|_| ()).unwrap();
    assert_eq!(timeline.uses.len(), 15);
    assert!(timeline.stall_nanos > 0);
}

#[test]
fn a_use_that_does_not_wait_is_found() {
    let fault = spoilt(|actions| {
        let ready = position(actions, |one| matches!(one, Action::Ready { .. }), 3);
        actions.remove(ready);
    });
    assert!(matches!(fault, Err(Fault::BeforeArrival(_))), "{fault:?}");
}

#[test]
fn a_copy_that_never_came_is_found() {
    let fault = spoilt(|actions| {
        let copy = position(actions, |one| matches!(one, Action::Copy { .. }), 4);
        actions.remove(copy);
    });
    assert!(matches!(fault, Err(Fault::BeforeArrival(_))), "{fault:?}");
}

#[test]
fn a_slot_that_is_taken_too_early_is_found() {
    let fault = spoilt(|actions| {
        let free = position(actions, |one| matches!(one, Action::Free { .. }), 0);
        let next = actions[free + 1..].iter().position(|one| matches!(one, Action::Alloc { .. }));
        actions.swap(free, free + 1 + next.unwrap());
    });
    assert!(matches!(fault, Err(Fault::TwoOwners(..))), "{fault:?}");
}

#[test]
fn a_copy_into_a_slot_in_use_is_found() {
    // The place changes hands on paper, but before the use it should have waited for.
    let fault = spoilt(|actions| {
        let free = position(actions, |one| matches!(one, Action::Free { .. }), 0);
        assert!(matches!(actions[free - 1], Action::Use { .. }));
        actions.swap(free - 1, free);
    });
    assert!(fault.is_err(), "{fault:?}");
}

#[test]
fn a_block_that_leaves_while_it_arrives_is_found() {
    let fault = spoilt(|actions| {
        let Action::Alloc { block, place } = actions[0] else { unreachable!() };
        actions.insert(2, Action::Free { block, place });
    });
    assert!(matches!(fault, Err(Fault::InFlight(..))), "{fault:?}");
}

#[test]
fn uses_out_of_order_and_lists_cut_short_are_found() {
    let fault = spoilt(|actions| {
        let use_ = position(actions, |one| matches!(one, Action::Use { block: 1 }), 0);
        actions[use_] = Action::Use { block: 0 };
    });
    assert!(matches!(fault, Err(Fault::OutOfOrder(0))), "{fault:?}");
    let fault = spoilt(|actions| actions.truncate(actions.len() - 1));
    assert!(matches!(fault, Err(Fault::Unfinished(15, 1))), "{fault:?}");
}

#[test]
fn places_that_overlap_or_overhang_are_found() {
    let place = |offset, bytes| Place { offset, bytes };
    let layout = |places: &[Place]| {
        let scene =
            Scene { bytes: &[1], uses: &[1], copies: &[1], arena_bytes: 100, places, passes: 1 };
        replay(&scene, &[])
    };
    assert_eq!(layout(&[place(0, 50), place(49, 10)]), Err(Fault::Layout(1)));
    assert_eq!(layout(&[place(60, 41)]), Err(Fault::Layout(0)));
    assert_eq!(layout(&[place(60, 40)]), Err(Fault::Unfinished(0, 0)));
}

#[test]
fn streamed_blocks_are_spread_evenly() {
    let request = equal_request(equal_stage(28, 10, 72), 5, 24);
    let found = plan(&request).unwrap();
    let streamed: Vec<usize> = found.stages[0]
        .holdings
        .iter()
        .enumerate()
        .filter(|(_, holding)| **holding == Holding::Streamed)
        .map(|(index, _)| index)
        .collect();
    let gaps: BTreeSet<usize> = streamed.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(streamed.len(), 5);
    assert_eq!(gaps, BTreeSet::from([5, 6]));
    assert_eq!(found.stages[0].pace.stall_nanos, 5, "only the first copy is waited for");
}
