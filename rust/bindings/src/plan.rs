//! The memory planner: `cosmos_fast_core::plan`.

use std::collections::BTreeMap;

use cosmos_fast_core::plan::{
    self, Action, Block, Holding, Link, Machine, Plan, Request, Residency, Shape, Source, Span,
    Stage, StagePlan,
};
use cosmos_fast_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors::to_python;

#[derive(FromPyObject)]
struct LinkIn {
    bytes_per_second: u64,
    latency_nanos: u64,
}

#[derive(FromPyObject)]
struct MachineIn {
    device_bytes: u64,
    device_fixed_bytes: u64,
    host_bytes: u64,
    host_fixed_bytes: u64,
    window_bytes: u64,
    bus: LinkIn,
    files: LinkIn,
}

#[derive(FromPyObject)]
struct BlockIn {
    name: String,
    bytes: u64,
    nanos: u64,
    hold: bool,
}

#[derive(FromPyObject)]
struct ShapeIn {
    name: String,
    activation_bytes: u64,
    slowdown_ppm: u64,
    exact: bool,
}

#[derive(FromPyObject)]
struct StageIn {
    name: String,
    component: String,
    blocks: Vec<BlockIn>,
    passes: u32,
    shapes: Vec<ShapeIn>,
    residency: String,
}

/// The attributes of a request; `cosmos_fast.memory.request` makes such objects.
#[derive(FromPyObject)]
pub struct RequestIn {
    machine: MachineIn,
    stages: Vec<StageIn>,
    max_slots: u32,
    stable_slots: bool,
    host_copies: bool,
}

/// What happens in one stage.
#[derive(IntoPyObject)]
pub struct StageOut {
    name: String,
    component: String,
    blocks: Vec<String>,
    shape: String,
    exact: bool,
    holdings: Vec<&'static str>,
    places: Vec<(u64, u64)>,
    slots: usize,
    slot_bytes: u64,
    arena_bytes: u64,
    activation_bytes: u64,
    peak_bytes: u64,
    copied_bytes: u64,
    passes: u32,
    nanos: u64,
    first_pass_nanos: u64,
    stall_nanos: u64,
}

/// A whole generation.
#[derive(IntoPyObject)]
pub struct PlanOut {
    stages: Vec<StageOut>,
    sources: BTreeMap<String, &'static str>,
    kept_bytes: u64,
    peak_bytes: u64,
    host_bytes: u64,
    pinned_bytes: u64,
    nanos: u64,
    copied_bytes: u64,
    smallest_device_bytes: u64,
    smallest_host_bytes: u64,
}

/// (kind, block, place): what the executor does; see the stub.
type ActionOut = (&'static str, usize, Option<usize>);
/// (block, place, start, end) in nanoseconds from the start of the stage.
type SpanOut = (usize, usize, u64, u64);

/// A finished plan.
#[pyclass(frozen)]
pub struct MemoryPlan(Plan);

#[pymethods]
impl MemoryPlan {
    /// All of the plan but its actions, as plain values.
    fn as_dict(&self) -> PlanOut {
        PlanOut {
            stages: self.0.stages.iter().map(stage_out).collect(),
            sources: (self.0.sources.iter())
                .map(|(component, source)| (component.clone(), source_name(*source)))
                .collect(),
            kept_bytes: self.0.kept_bytes,
            peak_bytes: self.0.peak_bytes,
            host_bytes: self.0.host_bytes,
            pinned_bytes: self.0.pinned_bytes,
            nanos: self.0.nanos,
            copied_bytes: self.0.copied_bytes,
            smallest_device_bytes: self.0.smallest_device_bytes,
            smallest_host_bytes: self.0.smallest_host_bytes,
        }
    }

    /// Everything to do in a stage, in order, in the planned passes or another number of them.
    #[pyo3(signature = (stage, passes = None))]
    fn actions(
        &self,
        py: Python<'_>,
        stage: usize,
        passes: Option<u32>,
    ) -> PyResult<Vec<ActionOut>> {
        let stage = self.stage(stage).map_err(|error| to_python(py, &error))?;
        let passes = passes.unwrap_or(stage.passes);
        Ok(py.detach(|| stage.actions(passes).into_iter().map(action_out).collect()))
    }

    /// A stage in virtual time: what the copy engine does, and the compute engine.
    fn timeline(&self, py: Python<'_>, stage: usize) -> PyResult<(Vec<SpanOut>, Vec<SpanOut>)> {
        let played = py.detach(|| -> Result<_> {
            let played = self.stage(stage)?.timeline();
            played.map_err(|fault| Error::argument(fault.to_string()))
        });
        let timeline = played.map_err(|error| to_python(py, &error))?;
        Ok((spans(timeline.copies), spans(timeline.uses)))
    }
}

impl MemoryPlan {
    fn stage(&self, index: usize) -> Result<&StagePlan> {
        let count = self.0.stages.len();
        let message = || Error::Argument(format!("stage {index}: the plan has {count}"));
        self.0.stages.get(index).ok_or_else(message)
    }
}

/// The best plan for a request.
#[pyfunction]
pub fn plan_memory(py: Python<'_>, request: RequestIn) -> PyResult<MemoryPlan> {
    let planned = py.detach(|| plan::plan(&core(request)?));
    planned.map(MemoryPlan).map_err(|error| to_python(py, &error))
}

/// The least device and host bytes for which there is a plan.
#[pyfunction]
pub fn smallest_memory(py: Python<'_>, request: RequestIn) -> PyResult<(u64, u64)> {
    let smallest = py.detach(|| plan::smallest(&core(request)?));
    smallest.map_err(|error| to_python(py, &error))
}

fn core(request: RequestIn) -> Result<Request> {
    let machine = request.machine;
    Ok(Request {
        machine: Machine {
            device_bytes: machine.device_bytes,
            device_fixed_bytes: machine.device_fixed_bytes,
            host_bytes: machine.host_bytes,
            host_fixed_bytes: machine.host_fixed_bytes,
            window_bytes: machine.window_bytes,
            bus: core_link(&machine.bus),
            files: core_link(&machine.files),
        },
        stages: request.stages.into_iter().map(core_stage).collect::<Result<_>>()?,
        max_slots: request.max_slots,
        stable_slots: request.stable_slots,
        host_copies: request.host_copies,
    })
}

fn core_link(link: &LinkIn) -> Link {
    Link { bytes_per_second: link.bytes_per_second, latency_nanos: link.latency_nanos }
}

fn core_stage(stage: StageIn) -> Result<Stage> {
    let residency = match stage.residency.as_str() {
        "free" => Residency::Free,
        "keep" => Residency::Keep,
        "drop" => Residency::Drop,
        other => {
            let message = format!("residency {other:?}: \"free\", \"keep\" or \"drop\" is needed");
            return Err(Error::Argument(message));
        }
    };
    let block = |block: BlockIn| Block {
        name: block.name,
        bytes: block.bytes,
        nanos: block.nanos,
        hold: block.hold,
    };
    let shape = |shape: ShapeIn| Shape {
        name: shape.name,
        activation_bytes: shape.activation_bytes,
        slowdown_ppm: shape.slowdown_ppm,
        exact: shape.exact,
    };
    Ok(Stage {
        name: stage.name,
        component: stage.component,
        blocks: stage.blocks.into_iter().map(block).collect(),
        passes: stage.passes,
        shapes: stage.shapes.into_iter().map(shape).collect(),
        residency,
    })
}

fn stage_out(stage: &StagePlan) -> StageOut {
    let holding = |holding: &Holding| match holding {
        Holding::Kept => "kept",
        Holding::Resident => "resident",
        Holding::Streamed => "streamed",
    };
    StageOut {
        name: stage.name.clone(),
        component: stage.component.clone(),
        blocks: stage.blocks.clone(),
        shape: stage.shape.clone(),
        exact: stage.exact,
        holdings: stage.holdings.iter().map(holding).collect(),
        places: stage.places.iter().map(|place| (place.offset, place.bytes)).collect(),
        slots: stage.slots,
        slot_bytes: stage.slot_bytes,
        arena_bytes: stage.arena_bytes,
        activation_bytes: stage.activation_bytes,
        peak_bytes: stage.peak_bytes,
        copied_bytes: stage.copied_bytes,
        passes: stage.passes,
        nanos: stage.pace.nanos,
        first_pass_nanos: stage.pace.first_pass_nanos,
        stall_nanos: stage.pace.stall_nanos,
    }
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Device => "device",
        Source::Pinned => "pinned",
        Source::Files => "files",
    }
}

fn action_out(action: Action) -> ActionOut {
    match action {
        Action::Alloc { block, place } => ("alloc", block, Some(place)),
        Action::Copy { block, place } => ("copy", block, Some(place)),
        Action::Ready { block } => ("ready", block, None),
        Action::Use { block } => ("use", block, None),
        Action::Free { block, place } => ("free", block, Some(place)),
    }
}

fn spans(spans: Vec<Span>) -> Vec<SpanOut> {
    let tuple = |span: Span| (span.block, span.place, span.start, span.end);
    spans.into_iter().map(tuple).collect()
}
