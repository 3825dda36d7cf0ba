//! The last pictures of a stream, brought to one size.

use std::collections::VecDeque;

use super::Picture;
use crate::pack::{Fit, Orientation, Shape, fit, orient};
use crate::{Error, Result};

/// Keeps the last few of many pictures.
pub struct Tail {
    kept: VecDeque<Picture>,
    wanted: usize,
    seen: u64,
}

impl Tail {
    /// For the last `wanted` pictures.
    pub fn new(wanted: usize) -> Self {
        Self { kept: VecDeque::new(), wanted, seen: 0 }
    }

    /// Adds the next picture; gives one back that is no longer among the last.
    pub fn push(&mut self, picture: Picture) -> Option<Picture> {
        self.seen += 1;
        self.kept.push_back(picture);
        if self.kept.len() > self.wanted { self.kept.pop_front() } else { None }
    }

    /// How many pictures there were.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Writes the pictures, oldest first, into `target` of the given shape.
    pub fn fit_into(
        self,
        target: &mut [u8],
        shape: Shape,
        how: Fit,
        orientation: Orientation,
    ) -> Result<()> {
        shape.pixels()?;
        if self.kept.len() != shape.frames {
            let count = self.kept.len();
            return Err(Error::argument(format!("{count} pictures for {} places", shape.frames)));
        }
        let size = (shape.height, shape.width);
        for (picture, target) in
            self.kept.into_iter().zip(target.chunks_exact_mut(size.0 * size.1 * 3))
        {
            let Picture { height, width, data, .. } = picture.into_rgb();
            let (data, height, width) = orient(data, (height, width), orientation)?;
            fit(&data, Shape { frames: 1, height, width }, target, size, how)?;
        }
        Ok(())
    }
}
