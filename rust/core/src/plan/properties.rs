//! What must hold for every plan, on 100 000 random machines, models and budgets.

use super::*;
use crate::Error;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

const CASES: u32 = 25_000;
const KIB: u64 = 1 << 10;

fn blocks(sizes: impl Strategy<Value = Vec<u64>>) -> impl Strategy<Value = Vec<Block>> {
    sizes.prop_flat_map(|sizes| {
        let details = prop::collection::vec((0_u64..400, prop::bool::weighted(0.1)), sizes.len());
        details.prop_map(move |details| {
            let block = |(index, (&bytes, (nanos, hold))): (usize, (&u64, (u64, bool)))| Block {
                name: index.to_string(),
                bytes,
                nanos,
                hold,
            };
            sizes.iter().zip(details).enumerate().map(block).collect()
        })
    })
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let shape = (0_u64..200, 0_u64..500_000, any::<bool>());
    prop::collection::vec(shape, 1..4).prop_map(|shapes| {
        let shape = |(index, (kib, slowdown, exact))| Shape {
            name: format!("shape {index}"),
            activation_bytes: kib * KIB,
            slowdown_ppm: if index == 0 { 0 } else { slowdown },
            exact: index == 0 || exact,
        };
        shapes.into_iter().enumerate().map(shape).collect()
    })
}

fn stage(sizes: impl Strategy<Value = Vec<u64>>) -> impl Strategy<Value = Stage> {
    let demand = prop_oneof![
        6 => Just(Residency::Free),
        1 => Just(Residency::Keep),
        1 => Just(Residency::Drop),
    ];
    let parts = (blocks(sizes), shapes(), 1_u32..24, demand);
    parts.prop_map(|(blocks, shapes, passes, residency)| Stage {
        name: String::new(),
        component: String::new(),
        blocks,
        passes,
        shapes,
        residency,
    })
}

fn link() -> impl Strategy<Value = Link> {
    (1_u64..2000, 0_u64..50).prop_map(|(kib_per_micro, latency_nanos)| Link {
        bytes_per_second: kib_per_micro * KIB * 1_000_000,
        latency_nanos,
    })
}

fn request(stages: impl Strategy<Value = Vec<Stage>>) -> impl Strategy<Value = Request> {
    let machine = (link(), link(), 0_u64..64, 0_u64..64, 1_u64..64);
    let options = (1_u32..5, any::<bool>(), any::<bool>());
    (machine, options, stages).prop_map(|(machine, options, mut stages)| {
        let (bus, files, device_fixed, host_fixed, window) = machine;
        for (index, stage) in stages.iter_mut().enumerate() {
            stage.name = format!("stage {index}");
            stage.component = format!("component {index}");
        }
        Request {
            machine: Machine {
                device_bytes: 0,
                device_fixed_bytes: device_fixed * KIB,
                host_bytes: 0,
                host_fixed_bytes: host_fixed * KIB,
                window_bytes: window * KIB,
                bus,
                files,
            },
            stages,
            max_slots: options.0,
            stable_slots: options.1,
            host_copies: options.2,
        }
    })
}

fn equal_sizes(most: usize) -> impl Strategy<Value = Vec<u64>> {
    (1_u64..64 * KIB, 1..=most).prop_map(|(bytes, count)| vec![bytes; count])
}

fn mixed_sizes(most: usize) -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(1_u64..64 * KIB, 1..=most)
}

/// The request with a share of the way from the smallest budget to one that holds everything.
fn with_budget(mut request: Request, device: f64, host: f64) -> Request {
    let (least_device, least_host) = smallest(&request).unwrap();
    let weights = |stage: &Stage| stage.blocks.iter().map(|b| aligned(b.bytes)).sum::<u64>();
    let all: u64 = request.stages.iter().map(weights).sum();
    let activations = request.stages.iter().flat_map(|s| &s.shapes).map(|s| s.activation_bytes);
    let device_range = all + activations.max().unwrap();
    request.machine.device_bytes = least_device + (device_range as f64 * device) as u64;
    request.machine.host_bytes = least_host + (all as f64 * host) as u64;
    request
}

fn played(stage: &Stage, planned: &StagePlan, uses: &[u64], copies: &[u64]) -> Timeline {
    let bytes: Vec<u64> = stage.blocks.iter().map(|block| block.bytes).collect();
    let scene = Scene {
        bytes: &bytes,
        uses,
        copies,
        arena_bytes: planned.arena_bytes,
        places: &planned.places,
        passes: stage.passes,
    };
    replay(&scene, &planned.actions(stage.passes))
        .unwrap_or_else(|fault| panic!("{fault}: {planned:#?}"))
}

/// The stage as the plan predicts it, and again with engines of other speeds.
fn check_stage(request: &Request, plan: &Plan, index: usize, strange: &[u64]) -> TestCaseResult {
    let (stage, planned) = (&request.stages[index], &plan.stages[index]);
    let machine = &request.machine;
    let shape = stage.shapes.iter().find(|shape| shape.name == planned.shape).unwrap();
    let slowed = |block: &Block| block.nanos + block.nanos * shape.slowdown_ppm / 1_000_000;
    let uses: Vec<u64> = stage.blocks.iter().map(slowed).collect();
    if planned.holdings[0] == Holding::Kept {
        let actions = planned.actions(stage.passes);
        let only_uses = actions.iter().all(|one| matches!(one, Action::Use { .. }));
        prop_assert!(only_uses, "a stage whose weights are there copies");
        prop_assert_eq!(actions.len(), stage.blocks.len() * stage.passes as usize);
        prop_assert_eq!(planned.pace.nanos, uses.iter().sum::<u64>() * u64::from(stage.passes));
        return Ok(());
    }
    let rates = [machine.bus, machine.files].map(|link| {
        let copies: Vec<u64> = stage.blocks.iter().map(|b| link.nanos(b.bytes)).collect();
        played(stage, planned, &uses, &copies)
    });
    let link = usize::from(plan.sources[&stage.component] == Source::Files);
    let timeline = &rates[link];
    prop_assert_eq!(timeline, &planned.timeline().unwrap());
    prop_assert_eq!(timeline.nanos, planned.pace.nanos, "prediction and replay differ");
    prop_assert_eq!(timeline.stall_nanos, planned.pace.stall_nanos);
    prop_assert_eq!(timeline.copied_bytes, planned.copied_bytes);
    prop_assert_eq!(timeline.uses[stage.blocks.len() - 1].end, planned.pace.first_pass_nanos);
    prop_assert!(timeline.peak_bytes <= planned.arena_bytes);
    let whole =
        machine.device_fixed_bytes + plan.kept_bytes + planned.arena_bytes + shape.activation_bytes;
    prop_assert_eq!(whole, planned.peak_bytes);
    let strange_copies = &strange[..stage.blocks.len()];
    played(stage, planned, strange, strange_copies);
    Ok(())
}

fn check(request: &Request, more: (u64, u64), strange: &[u64]) -> TestCaseResult {
    let machine = &request.machine;
    let found = plan(request).unwrap();
    prop_assert!(found.peak_bytes <= machine.device_bytes);
    prop_assert!(found.host_bytes <= machine.host_bytes);
    // Planning is most of what these cases cost: one in eight is planned a second time.
    if more.0.is_multiple_of(8) {
        prop_assert_eq!(&found, &plan(request).unwrap(), "the same request, another plan");
    }
    for index in 0..request.stages.len() {
        check_stage(request, &found, index, strange)?;
    }

    let mut richer = request.clone();
    richer.machine.device_bytes += more.0;
    richer.machine.host_bytes += more.1;
    let faster = plan(&richer).unwrap();
    prop_assert!(faster.nanos <= found.nanos, "more memory made it slower");
    prop_assert_eq!(faster.smallest_device_bytes, found.smallest_device_bytes);

    let mut poorer = request.clone();
    poorer.machine.device_bytes = found.smallest_device_bytes;
    poorer.machine.host_bytes = found.smallest_host_bytes;
    prop_assert!(plan(&poorer).is_ok(), "the smallest budget does not fit");
    if let Some(bytes) = found.smallest_device_bytes.checked_sub(1) {
        poorer.machine.device_bytes = bytes;
        prop_assert!(matches!(plan(&poorer), Err(Error::Memory(_))));
    }
    Ok(())
}

macro_rules! all_properties_hold {
    ($name:ident, $stages:expr) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(CASES))]
            #[test]
            fn $name(
                request in request($stages),
                device in 0.0..1.3_f64,
                host in 0.0..1.3_f64,
                more in (0_u64..256 * KIB, 0_u64..256 * KIB),
                strange in prop::collection::vec(0_u64..10_000, 8..40),
            ) {
                check(&with_budget(request, device, host), more, &strange)?;
            }
        }
    };
}

all_properties_hold!(
    one_stage_of_equal_blocks,
    stage(equal_sizes(8)).prop_map(|stage| vec![stage])
);
all_properties_hold!(
    one_stage_of_mixed_blocks,
    stage(mixed_sizes(8)).prop_map(|stage| vec![stage])
);
all_properties_hold!(stages_of_equal_blocks, prop::collection::vec(stage(equal_sizes(5)), 1..4));
all_properties_hold!(stages_of_mixed_blocks, prop::collection::vec(stage(mixed_sizes(5)), 1..4));
