//! Pixels between the forms of files, networks and encoders, in memory that the caller owns.
//!
//! Every fast path has a scalar twin in its tests. Work is spread over a pool of our own, so that
//! the host program's rayon pool keeps its size and its thread-local state.

mod normalize;
mod orient;
mod resize;
mod yuv;

use std::sync::OnceLock;

pub use normalize::{bf16_table, denormalize, f32_table, normalize};
pub use orient::{Orientation, orient};
pub use resize::{Fit, Windows, fit, windows};
pub use yuv::{rgb_to_yuv420, yuv420_bytes};

use crate::{Error, Result};

/// More threads than this only fight over memory bandwidth.
const MAX_THREADS: usize = 8;

/// Height, width and number of pictures of a clip, T x H x W pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pictures.
    pub frames: usize,
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
}

impl Shape {
    /// Pixels of the whole clip; an error where the product overflows or an axis is empty.
    pub fn pixels(self) -> Result<usize> {
        let Self { frames, height, width } = self;
        frames
            .checked_mul(height)
            .and_then(|rows| rows.checked_mul(width))
            .filter(|&pixels| pixels > 0 && pixels <= isize::MAX as usize / 12)
            .ok_or_else(|| {
                Error::argument(format!(
                    "{frames} pictures of {height}x{width} (height x width): \
                     every axis must be at least 1 and the whole must fit in memory"
                ))
            })
    }

    fn expect(self, name: &str, length: usize, per_pixel: usize) -> Result<()> {
        let expected = self.pixels()? * per_pixel;
        if length == expected {
            return Ok(());
        }
        let Self { frames, height, width } = self;
        Err(Error::argument(format!(
            "{name} holds {length} values where {frames} pictures of {height}x{width} \
             (height x width) need {expected}"
        )))
    }
}

struct Pool {
    threads: Option<rayon::ThreadPool>,
    process: u32,
}

/// Runs `work` on the core's own threads; in a forked child, where those threads do not exist, on
/// threads of the child.
fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static POOL: OnceLock<Pool> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let wanted = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let built = rayon::ThreadPoolBuilder::new()
            .num_threads(wanted)
            .thread_name(|index| format!("cosmos-pack-{index}"))
            .build();
        Pool { threads: built.ok(), process: std::process::id() }
    });
    match &pool.threads {
        Some(threads) if pool.process == std::process::id() => threads.install(work),
        _ => work(),
    }
}
