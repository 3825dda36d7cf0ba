//! A plan: what is where in each stage, what happens, and what it costs.

use std::collections::BTreeMap;

use super::frontier::Choice;
use super::pace::Pace;
use super::replay::{Fault, Scene, Span, Timeline, replay};
use super::request::{Request, Stage};
use super::schedule::{self, Action, Place};

/// Where a component's weights are while they are not in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// On the device, for good.
    Device,
    /// In pinned host memory.
    Pinned,
    /// In their files, read through the pinned window.
    Files,
}

/// How a stage holds one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// It is there already and stays after the stage.
    Kept,
    /// It comes in the first pass and stays until the last.
    Resident,
    /// It comes in every pass.
    Streamed,
}

/// What happens in one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePlan {
    /// The stage.
    pub name: String,
    /// Whose weights it uses.
    pub component: String,
    /// Names of its blocks.
    pub blocks: Vec<String>,
    /// The chosen shape.
    pub shape: String,
    /// It computes the same bytes as the plain shape.
    pub exact: bool,
    /// Of each block.
    pub holdings: Vec<Holding>,
    /// Places in the stage's arena: slots, then residents. Of a kept stage: each block's place in
    /// the arena of what is kept.
    pub places: Vec<Place>,
    /// How many of the places are slots.
    pub slots: usize,
    /// Size of a slot.
    pub slot_bytes: u64,
    /// Bytes of the stage's arena, 0 for a kept stage.
    pub arena_bytes: u64,
    /// Bytes beside weights.
    pub activation_bytes: u64,
    /// The engine's share of the device at its fullest in this stage.
    pub peak_bytes: u64,
    /// Bytes copied to the device.
    pub copied_bytes: u64,
    /// Predicted time.
    pub pace: Pace,
    /// Passes over the blocks.
    pub passes: u32,
    /// Bytes of each block.
    block_bytes: Vec<u64>,
    /// Nanoseconds of each block's use and copy.
    uses: Vec<u64>,
    copies: Vec<u64>,
    choice: Choice,
    stable: bool,
}

impl StagePlan {
    /// Everything to do in `passes` passes, in order. Passes are told apart by their uses.
    pub fn actions(&self, passes: u32) -> Vec<Action> {
        if self.is_kept() {
            let pass = 0..self.blocks.len();
            let uses = |_| pass.clone().map(|block| Action::Use { block });
            return (0..passes).flat_map(uses).collect();
        }
        schedule::actions(&self.choice, passes, self.stable)
    }

    /// The stage in virtual time, at the rates that the plan was made for.
    pub fn timeline(&self) -> std::result::Result<Timeline, Fault> {
        if self.is_kept() {
            return Ok(self.kept_timeline());
        }
        let scene = Scene {
            bytes: &self.block_bytes,
            uses: &self.uses,
            copies: &self.copies,
            arena_bytes: self.arena_bytes,
            places: &self.places,
            passes: self.passes,
        };
        replay(&scene, &self.actions(self.passes))
    }

    fn is_kept(&self) -> bool {
        self.holdings.iter().all(|holding| *holding == Holding::Kept)
    }

    fn kept_timeline(&self) -> Timeline {
        let mut timeline = Timeline::default();
        for block in (0..self.passes).flat_map(|_| 0..self.blocks.len()) {
            let start = timeline.nanos;
            timeline.nanos += self.uses[block];
            timeline.uses.push(Span { block, place: block, start, end: timeline.nanos });
        }
        timeline
    }
}

/// A whole generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they run.
    pub stages: Vec<StagePlan>,
    /// Where each component's weights rest.
    pub sources: BTreeMap<String, Source>,
    /// Bytes of the arena that holds the components that are kept.
    pub kept_bytes: u64,
    /// The engine's share of the device at its fullest.
    pub peak_bytes: u64,
    /// The engine's share of the host's memory, pinned weights included.
    pub host_bytes: u64,
    /// Pinned bytes of weights, without the window.
    pub pinned_bytes: u64,
    /// Predicted time of all stages.
    pub nanos: u64,
    /// Bytes copied to the device.
    pub copied_bytes: u64,
    /// The least device bytes for which there is a plan.
    pub smallest_device_bytes: u64,
    /// The least host bytes for which there is a plan.
    pub smallest_host_bytes: u64,
}

/// The plan of `stage` beside which `gone` bytes of the device are taken.
pub(super) fn stage_plan(
    request: &Request,
    stage: &Stage,
    (choice, source): (&Choice, Source),
    places: Vec<Place>,
    gone: u64,
) -> StagePlan {
    let holding = |streamed: &bool| match (source, streamed) {
        (Source::Device, _) => Holding::Kept,
        (_, true) => Holding::Streamed,
        (_, false) => Holding::Resident,
    };
    let link = match source {
        Source::Files => request.machine.files,
        Source::Pinned | Source::Device => request.machine.bus,
    };
    let shape = &stage.shapes[choice.shape];
    StagePlan {
        name: stage.name.clone(),
        component: stage.component.clone(),
        blocks: stage.blocks.iter().map(|block| block.name.clone()).collect(),
        shape: shape.name.clone(),
        exact: choice.exact,
        holdings: choice.streamed.iter().map(holding).collect(),
        places,
        slots: choice.slots,
        slot_bytes: choice.slot_bytes,
        arena_bytes: choice.memory - shape.activation_bytes,
        activation_bytes: shape.activation_bytes,
        peak_bytes: gone + choice.memory,
        copied_bytes: choice.copied_bytes,
        pace: choice.pace,
        passes: stage.passes,
        block_bytes: stage.blocks.iter().map(|block| block.bytes).collect(),
        uses: stage.use_nanos(shape),
        copies: stage.blocks.iter().map(|block| link.nanos(block.bytes)).collect(),
        choice: choice.clone(),
        stable: request.stable_slots,
    }
}
