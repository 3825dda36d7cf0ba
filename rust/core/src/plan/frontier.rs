//! Every sensible way of holding one stage's weights, reduced to those worth their memory.

use super::pace::{Pace, Work, pace};
use super::request::{Link, Request, Shape, Stage, aligned};

/// One way of running a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Index into the stage's shapes.
    pub shape: usize,
    /// Blocks that are copied in every pass.
    pub streamed: Vec<bool>,
    /// Slots that they share.
    pub slots: usize,
    /// Size of each slot.
    pub slot_bytes: u64,
    /// Bytes of the blocks that stay.
    pub resident_bytes: u64,
    /// Activations, residents and slots.
    pub memory: u64,
    /// Bytes copied to the device in the whole stage.
    pub copied_bytes: u64,
    /// How long it takes.
    pub pace: Pace,
    /// It computes the same bytes as the plain shape.
    pub exact: bool,
}

impl Choice {
    /// Smaller is better: time first, then traffic, then fidelity to the plain shape.
    pub fn rank(&self) -> (u64, u64, bool, usize) {
        (self.pace.nanos, self.copied_bytes, !self.exact, self.shape)
    }
}

/// The ways to run `stage` with weights arriving over `link`: memory rises, rank falls.
///
/// A larger budget sees all that a smaller one sees, so more memory is never slower.
pub(super) fn frontier(request: &Request, stage: &Stage, link: Link) -> Vec<Choice> {
    let copies: Vec<u64> = stage.blocks.iter().map(|b| link.nanos(b.bytes)).collect();
    let patterns = patterns(stage);
    let mut choices = Vec::new();
    for (index, shape) in stage.shapes.iter().enumerate() {
        let uses = stage.use_nanos(shape);
        for turns in &patterns {
            for streamed in turns {
                let mut work = Work {
                    uses: &uses,
                    copies: &copies,
                    streamed,
                    slots: 1,
                    stable: request.stable_slots,
                    passes: stage.passes,
                };
                let bound = work.bound();
                let count = streamed.iter().filter(|one| **one).count();
                let most = count.saturating_sub(1).min(request.max_slots as usize);
                for slots in 1..=most.max(1) {
                    work.slots = slots;
                    choices.push(choice(stage, (index, shape), work));
                    if choices.last().is_some_and(|last| last.pace.nanos == bound) {
                        break;
                    }
                }
                if work.slots == 1 && choices.last().is_some_and(|last| last.pace.nanos == bound) {
                    // What is spread as evenly, later in the pass, cannot be faster or smaller.
                    break;
                }
            }
        }
    }
    best_by_memory(choices)
}

/// The ways to run `stage` when its weights never leave the device; memory is activations only.
pub(super) fn kept_frontier(stage: &Stage) -> Vec<Choice> {
    let ways = stage.shapes.iter().enumerate().map(|(index, shape)| Choice {
        shape: index,
        streamed: vec![false; stage.blocks.len()],
        slots: 0,
        slot_bytes: 0,
        resident_bytes: 0,
        memory: shape.activation_bytes,
        copied_bytes: 0,
        pace: computing(stage, shape),
        exact: shape.exact,
    });
    best_by_memory(ways.collect())
}

/// The best of `frontier` within `memory`.
pub(super) fn best_within(frontier: &[Choice], memory: u64) -> Option<&Choice> {
    let fitting = frontier.partition_point(|choice| choice.memory <= memory);
    frontier[..fitting].last()
}

fn best_by_memory(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by_key(|choice| (choice.memory, choice.rank()));
    let mut best: Vec<Choice> = Vec::new();
    for choice in choices {
        if best.last().is_none_or(|last| choice.rank() < last.rank()) {
            best.push(choice);
        }
    }
    best
}

fn computing(stage: &Stage, shape: &Shape) -> Pace {
    let pass: u64 = stage.use_nanos(shape).iter().sum();
    Pace { nanos: pass * u64::from(stage.passes), first_pass_nanos: pass, stall_nanos: 0 }
}

fn choice(stage: &Stage, (index, shape): (usize, &Shape), work: Work) -> Choice {
    let (mut resident, mut streaming, mut largest) = (0, 0, 0);
    for (block, &streamed) in stage.blocks.iter().zip(work.streamed) {
        if streamed {
            streaming += block.bytes;
            largest = largest.max(aligned(block.bytes));
        } else {
            resident += block.bytes;
        }
    }
    let resident_bytes = (stage.blocks.iter().zip(work.streamed))
        .filter(|(_, streamed)| !**streamed)
        .map(|(block, _)| aligned(block.bytes))
        .sum();
    let slots = if largest == 0 { 0 } else { work.slots };
    Choice {
        shape: index,
        streamed: work.streamed.to_vec(),
        slots,
        slot_bytes: largest,
        resident_bytes,
        memory: shape.activation_bytes + resident_bytes + slots as u64 * largest,
        copied_bytes: resident + streaming * u64::from(stage.passes),
        pace: pace(&work),
        exact: shape.exact,
    }
}

/// Which blocks to stream: none, or two and more (one alone would own its slot: a resident).
///
/// Spread evenly over the pass, so that each copy has the same amount of computing to hide behind;
/// of blocks of several sizes also the largest, which free most, and the smallest, which need the
/// smallest slots. Patterns that differ in nothing but where in the pass they start are together.
fn patterns(stage: &Stage) -> Vec<Vec<Vec<bool>>> {
    let loose: Vec<usize> = (0..stage.blocks.len()).filter(|&i| !stage.blocks[i].hold).collect();
    let mut by_size = loose.clone();
    by_size.sort_by_key(|&index| stage.blocks[index].bytes);
    let mut sizes: Vec<u64> = loose.iter().map(|&i| aligned(stage.blocks[i].bytes)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let marked = |chosen: &mut dyn Iterator<Item = usize>| {
        let mut streamed = vec![false; stage.blocks.len()];
        chosen.for_each(|index| streamed[index] = true);
        streamed
    };
    let mut patterns = vec![vec![vec![false; stage.blocks.len()]]];
    for count in 2..=loose.len() {
        let turns =
            (0..period(loose.len(), count)).map(|turn| marked(&mut evenly(&loose, count, turn)));
        if sizes.len() == 1 {
            patterns.push(turns.collect());
            continue;
        }
        patterns.extend(turns.map(|pattern| vec![pattern]));
        if count < loose.len() {
            patterns.push(vec![marked(&mut by_size[..count].iter().copied())]);
            patterns.push(vec![marked(&mut by_size[loose.len() - count..].iter().copied())]);
        }
    }
    patterns
}

/// `count` of `items`, with gaps that differ by one at most, `turn` items later than the first way.
fn evenly(items: &[usize], count: usize, turn: usize) -> impl Iterator<Item = usize> {
    let length = items.len();
    let chosen = move |&(place, _): &(usize, &usize)| {
        let place = (place + turn) % length;
        (place + 1) * count / length > place * count / length
    };
    items.iter().enumerate().filter(chosen).map(|(_, index)| *index)
}

/// In how many ways `count` of `length` items can be spread evenly.
fn period(length: usize, count: usize) -> usize {
    let (mut divisor, mut rest) = (length, count);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    length / divisor
}
