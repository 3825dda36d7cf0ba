//! What the planner is told: the machine, the stages, and what may be traded for memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{Error, Result};

/// Bytes to which every place in an arena is aligned.
pub const ALIGNMENT: u64 = 512;
/// Components that may be kept or dropped independently of one another.
const MOST_COMPONENTS: usize = 8;
const MOST_BLOCKS: usize = 256;
const MOST_PASSES: u32 = 1 << 16;
const MOST_SLOTS: u32 = 8;
/// No size, time or rate reaches this, so that sums of them cannot overflow.
const LARGEST: u64 = 1 << 46;
/// Nanoseconds (five years) that no stage reaches, however badly it is planned.
const LONGEST: u128 = 1 << 57;

/// Where weights come from when they are copied to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Measured bytes a second.
    pub bytes_per_second: u64,
    /// Nanoseconds that each copy costs on top.
    pub latency_nanos: u64,
}

impl Link {
    /// Nanoseconds that `bytes` take, rounded up.
    pub fn nanos(self, bytes: u64) -> u64 {
        self.wide_nanos(bytes) as u64
    }

    fn wide_nanos(self, bytes: u64) -> u128 {
        let moving = u128::from(bytes) * 1_000_000_000;
        let rate = u128::from(self.bytes_per_second.max(1));
        u128::from(self.latency_nanos) + moving.div_ceil(rate)
    }
}

/// What there is to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The engine's whole share of the device.
    pub device_bytes: u64,
    /// What is gone before the first weight: context, library workspaces, graphs.
    pub device_fixed_bytes: u64,
    /// The engine's whole share of the host's memory.
    pub host_bytes: u64,
    /// What the process needs without any weight.
    pub host_fixed_bytes: u64,
    /// Pinned bytes through which weights pass that are not held in pinned memory.
    pub window_bytes: u64,
    /// From pinned memory to the device.
    pub bus: Link,
    /// From the weight files, through the window, to the device.
    pub files: Link,
}

/// A unit of weights that moves as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What it is called; the same name in two stages of a component is the same block.
    pub name: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Nanoseconds of one use in the stage's first shape.
    pub nanos: u64,
    /// It is used all over a pass and cannot be streamed.
    pub hold: bool,
}

/// One way to run a stage: whole, chunked, tiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called.
    pub name: String,
    /// Peak bytes beside the weights: activations, workspace, caches, what earlier stages left.
    pub activation_bytes: u64,
    /// Additional time of every use, in millionths.
    pub slowdown_ppm: u64,
    /// It computes the same bytes as the first shape.
    pub exact: bool,
}

/// What the caller demands of a stage's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// The planner decides.
    #[default]
    Free,
    /// They stay on the device for good.
    Keep,
    /// They leave the device when the stage ends.
    Drop,
}

/// A part of the run that uses its blocks in order, a number of times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What it is called.
    pub name: String,
    /// Whose weights it uses; several stages may share a component.
    pub component: String,
    /// In the order of use.
    pub blocks: Vec<Block>,
    /// How often the whole list is used.
    pub passes: u32,
    /// Alternatives; the first is the plain one.
    pub shapes: Vec<Shape>,
    /// A demand of the caller.
    pub residency: Residency,
}

/// Everything the planner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What there is to spend.
    pub machine: Machine,
    /// In the order in which they run, once each a generation.
    pub stages: Vec<Stage>,
    /// Most slots that the streamed blocks of a stage share.
    pub max_slots: u32,
    /// A streamed block lands in the same slot in every pass, as captured graphs need.
    pub stable_slots: bool,
    /// Weights on the device have a pinned copy, so that the device can be given back and
    /// restored at the speed of the bus.
    pub host_copies: bool,
}

/// `bytes` rounded up to [`ALIGNMENT`].
pub fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

impl Stage {
    /// Nanoseconds of each block's use in `shape`.
    pub(super) fn use_nanos(&self, shape: &Shape) -> Vec<u64> {
        let scaled = |block: &Block| {
            let extra = u128::from(block.nanos) * u128::from(shape.slowdown_ppm) / 1_000_000;
            block.nanos + extra as u64
        };
        self.blocks.iter().map(scaled).collect()
    }
}

impl Request {
    /// Aligned bytes of each component, every block counted once.
    pub(super) fn component_bytes(&self) -> BTreeMap<&str, u64> {
        let mut seen = HashSet::new();
        let mut totals = BTreeMap::new();
        for stage in &self.stages {
            let total = totals.entry(stage.component.as_str()).or_insert(0);
            for block in &stage.blocks {
                if seen.insert((&stage.component, &block.name)) {
                    *total += aligned(block.bytes);
                }
            }
        }
        totals
    }

    /// Refuses what makes no sense, naming it.
    pub(super) fn check(&self) -> Result<()> {
        let machine = &self.machine;
        for (name, link) in [("bus", machine.bus), ("files", machine.files)] {
            if link.bytes_per_second == 0 {
                return Err(Error::argument(format!("the {name} moves 0 bytes a second")));
            }
            within(name, link.bytes_per_second)?;
            within(name, link.latency_nanos)?;
        }
        for (name, bytes) in [
            ("device_fixed_bytes", machine.device_fixed_bytes),
            ("host_fixed_bytes", machine.host_fixed_bytes),
            ("window_bytes", machine.window_bytes),
        ] {
            within(name, bytes)?;
        }
        if !(1..=MOST_SLOTS).contains(&self.max_slots) {
            let asked = self.max_slots;
            let message = format!("max_slots is {asked}: 1 to {MOST_SLOTS} are possible");
            return Err(Error::Argument(message));
        }
        if self.stages.is_empty() {
            return Err(Error::argument("no stage: there is nothing to plan"));
        }
        let mut sizes = HashMap::new();
        for (index, stage) in self.stages.iter().enumerate() {
            if self.stages[..index].iter().any(|one| one.name == stage.name) {
                let message = format!("two stages are called {:?}", stage.name);
                return Err(Error::Argument(message));
            }
            check_stage(stage)?;
            self.check_duration(stage)?;
            for block in &stage.blocks {
                let known = sizes.insert((&stage.component, &block.name), block.bytes);
                if known.is_some_and(|bytes| bytes != block.bytes) {
                    let (name, component) = (&block.name, &stage.component);
                    return Err(Error::Argument(format!(
                        "block {name:?} of {component:?} has two sizes"
                    )));
                }
            }
        }
        let components = self.component_bytes().len();
        if components > MOST_COMPONENTS {
            return Err(Error::Argument(format!(
                "{components} components: at most {MOST_COMPONENTS} are planned together"
            )));
        }
        Ok(())
    }

    /// Even with every copy and every use one after the other, time stays within its type.
    fn check_duration(&self, stage: &Stage) -> Result<()> {
        let links = [self.machine.bus, self.machine.files];
        let mut pass = 0_u128;
        for block in &stage.blocks {
            let copy = links.map(|link| link.wide_nanos(block.bytes));
            let slowest = stage.shapes.iter().map(|shape| shape.slowdown_ppm).max();
            let extra = u128::from(block.nanos) * u128::from(slowest.unwrap_or(0)) / 1_000_000;
            pass += copy[0].max(copy[1]) + u128::from(block.nanos) + extra;
        }
        if pass * u128::from(stage.passes) < LONGEST {
            return Ok(());
        }
        let message = format!("stage {:?} would take years: check its times and rates", stage.name);
        Err(Error::Argument(message))
    }
}

fn check_stage(stage: &Stage) -> Result<()> {
    let name = &stage.name;
    let refuse = |what: String| Err(Error::Argument(format!("stage {name:?}: {what}")));
    if stage.shapes.is_empty() {
        return refuse("no shape: at least the plain one is needed".into());
    }
    if !(1..=MOST_BLOCKS).contains(&stage.blocks.len()) {
        let count = stage.blocks.len();
        return refuse(format!("{count} blocks: 1 to {MOST_BLOCKS} are possible"));
    }
    if !(1..=MOST_PASSES).contains(&stage.passes) {
        let passes = stage.passes;
        return refuse(format!("{passes} passes: 1 to {MOST_PASSES} are possible"));
    }
    for shape in &stage.shapes {
        within(&shape.name, shape.activation_bytes)?;
        within(&shape.name, shape.slowdown_ppm)?;
    }
    for (index, block) in stage.blocks.iter().enumerate() {
        if stage.blocks[..index].iter().any(|one| one.name == block.name) {
            return refuse(format!("block {:?} is there twice", block.name));
        }
        if block.bytes == 0 {
            return refuse(format!("block {:?} has no bytes", block.name));
        }
        within(&block.name, block.bytes)?;
        within(&block.name, block.nanos)?;
    }
    Ok(())
}

fn within(name: &str, value: u64) -> Result<()> {
    if value < LARGEST {
        return Ok(());
    }
    let message = format!("{name} is {value}: a number below {LARGEST} is needed");
    Err(Error::Argument(message))
}
