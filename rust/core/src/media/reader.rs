//! Pictures out of ffmpeg.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Waited;
use super::child::{Ends, Program};
use super::pnm::{Assembler, Bounds, Picture};
use super::ring::Ring;
use super::supervisor::{Read, Sink, supervise};
use super::worker::Worker;
use crate::{Error, Result};

/// Decodes on a thread of its own, at most `ring` pictures ahead of the caller.
///
/// Dropping it stops ffmpeg and waits for its end.
pub struct FrameReader(Worker<Picture>);

impl FrameReader {
    /// Starts `program`, which is to write PPM or PAM pictures to its standard output.
    ///
    /// `patience` bounds the time for which ffmpeg may make us wait, all pictures together; time
    /// that the caller spends on its own does not count.
    pub fn start(
        program: Program,
        bounds: Bounds,
        ring: usize,
        patience: Duration,
    ) -> Result<Self> {
        let ends = Ends { feed: false, read: true };
        let ring = Ring::new(ring.max(1))?;
        Worker::start("cosmos-reader", program, ends, ring, move |child, ring| {
            let mut sink = Pictures { ring, assembler: Assembler::new(bounds) };
            supervise(child, &mut (), &mut sink, &ring.wake, &|| ring.is_stopped(), patience)
        })
        .map(Self)
    }

    /// The next picture, `None` after the last; waits for at most `time`.
    pub fn next(&self, time: Duration) -> Result<Waited<Option<Picture>>> {
        self.0.ring.take(time)
    }

    /// Gives the memory of a picture back, for another one.
    pub fn recycle(&self, picture: Picture) {
        self.0.ring.recycle(picture);
    }
}

/// What waiting pictures may take: large ones wait in smaller numbers.
const RING_BYTES: usize = 256 << 20;

struct Pictures<'a> {
    ring: &'a Ring<Picture>,
    assembler: Assembler,
}

impl Sink for Pictures<'_> {
    fn has_room(&self) -> bool {
        let places = RING_BYTES / self.assembler.picture_bytes().max(1);
        self.ring.has_room(places.max(1))
    }

    fn read(&mut self, from: BorrowedFd<'_>) -> Result<Read> {
        let ring = self.ring;
        let mut memory = || ring.spare().map(|picture| picture.data);
        self.assembler.read(from, &mut memory, &mut |picture| ring.give(picture))
    }

    fn end(&mut self, said: &str) -> Result<()> {
        if let Some(sizes) = size_change(said) {
            return Err(Error::Stream(format!(
                "the size changes from {sizes} (width x height); cut the video where it changes"
            )));
        }
        if let Some(words) = damage(said) {
            return Err(Error::Stream(format!(
                "it is damaged ({words}); take a sound copy, or save it again in a player"
            )));
        }
        self.assembler.end()
    }
}

/// The sizes in ffmpeg's warning that frames are not as the first one was.
///
/// With `-reinit_filter 0` it scales such frames to the first one's size, and only this tells.
fn size_change(said: &str) -> Option<String> {
    said.lines().find_map(|line| {
        let (before, after) = line.split_once("incoming frame - ")?;
        let [first, other] = [size_in(before)?, size_in(after)?];
        (first != other).then(|| format!("{first} to {other}"))
    })
}

fn size_in(text: &str) -> Option<String> {
    let (_, text) = text.split_once("w: ")?;
    let (width, text) = text.split_once(" h: ")?;
    let height = text.split(' ').next()?;
    Some(format!("{width}x{height}"))
}

/// What ffmpeg says of a damaged file although it goes on: a checksum that does not fit, after which
/// it shows an older picture in the place, or a Matroska file of which it skips a piece.
///
/// Other errors come up in sound files too, as where a search lands between two key frames.
fn damage(said: &str) -> Option<String> {
    said.lines().find_map(|line| {
        let (source, words) = line.split_once("[error] ")?;
        let damaged = source.contains("matroska") || words.contains("CRC mismatch");
        damaged.then(|| words.split_whitespace().take(12).collect::<Vec<_>>().join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::{damage, size_change};

    #[test]
    fn damage_is_heard_in_the_errors() {
        let checksum = "[ffv1 @ 0x7f] [error] slice CRC mismatch 51F9423!at 0.1 seconds";
        assert_eq!(damage(checksum).as_deref(), Some("slice CRC mismatch 51F9423!at 0.1 seconds"));
        let skipped = "ok\n[in#0/matroska,webm @ 0x7f] [error]  at pos 810 invalid as first byte";
        assert_eq!(damage(skipped).as_deref(), Some("at pos 810 invalid as first byte"));
        assert_eq!(damage("[h264 @ 0x7f] [error] reference picture missing"), None);
        assert_eq!(damage("[in#0/matroska,webm @ 0x7f] [warning] File extends beyond"), None);
    }

    #[test]
    fn a_change_of_size_is_heard_in_the_warnings() {
        let said = |before: &str, after: &str| {
            format!(
                "[error] other\n[in @ 0x7f] [warning] filter context - {before} fmt: 0 csp: \
                 unknown, incoming frame - {after} fmt: 0 csp: bt709 pts_time: 0.6\n"
            )
        };
        let change = size_change(&said("w: 64 h: 48", "w: 64 h: 96"));
        assert_eq!(change.as_deref(), Some("64x48 to 64x96"));
        assert_eq!(size_change(&said("w: 64 h: 48", "w: 64 h: 48")), None);
        assert_eq!(size_change("incoming frame - \n w: 1"), None);
    }
}
