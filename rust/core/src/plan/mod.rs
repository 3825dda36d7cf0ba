//! Decides where every weight is at every moment, before anything moves.
//!
//! The order in which a run needs its weights is known. [`plan`] chooses, for a budget, which
//! components stay on the device for good, how the blocks of the others take turns in it, how far
//! activations are cut up, and what the host holds in pinned memory; it predicts peak and time.
//! [`replay`] plays a stage's actions in virtual time and finds every way in which they could go
//! wrong. Nothing here knows of a device, and the same request has the same plan.

mod choose;
mod frontier;
#[cfg(test)]
mod optimum;
mod outcome;
mod pace;
#[cfg(test)]
mod properties;
mod replay;
mod request;
mod schedule;

pub use choose::{plan, smallest};
pub use outcome::{Holding, Plan, Source, StagePlan};
pub use pace::Pace;
pub use replay::{Fault, Scene, Span, Timeline, replay};
pub use request::{ALIGNMENT, Block, Link, Machine, Request, Residency, Shape, Stage, aligned};
pub use schedule::{Action, Place};
