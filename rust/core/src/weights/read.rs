//! Bytes of a file to addresses of the caller's, by several threads, announced as they land.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rustix::fs::{Advice, OFlags, fadvise};

use super::source::open_regular;
use crate::{Error, Result};

/// What direct reads must be multiples of, in the file and in memory.
const BLOCK: usize = 4096;
const MOST_THREADS: usize = 64;
const SMALLEST_PIECE: usize = 64 << 10;
const LARGEST_PIECE: usize = 256 << 20;

/// What happens to the bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Copy,
    /// float32 is rounded to bfloat16, to nearest even: half as many bytes land.
    Float32ToBfloat16,
}

/// A stretch of the file and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Address of the first byte in memory.
    pub target: usize,
    /// What happens on the way.
    pub kind: Kind,
    /// Transfers of this list that must have been released before this one may be written: those
    /// whose memory it takes over. 0 where it has its own.
    pub gate: usize,
}

/// How to read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that read at the same time.
    pub threads: usize,
    /// Bytes that a thread reads at a time.
    pub piece_bytes: usize,
    /// Past the page cache, where the file system can.
    pub direct: bool,
}

/// Transfers under way. Dropping it ends them; no byte is written afterwards.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    direct: Option<File>,
    transfers: Vec<Transfer>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

/// A part of a transfer; offsets count from the transfer's start.
#[derive(Clone, Copy, Debug)]
struct Piece {
    transfer: usize,
    offset: u64,
    bytes: usize,
}

#[derive(Debug)]
struct State {
    /// Pieces of each transfer that have not landed.
    missing: Vec<usize>,
    /// Transfers whose memory the caller needs no more.
    released: usize,
    stopped: bool,
    failure: Option<String>,
}

impl Reader {
    /// Starts to read `path`.
    ///
    /// # Safety
    ///
    /// Each target must be memory that is valid to write, aligned for its values, and touched by
    /// nobody else, from now until its transfer has landed or the reader is dropped. Targets that
    /// share bytes must be kept apart by their gates.
    pub unsafe fn start(path: &Path, transfers: Vec<Transfer>, options: Options) -> Result<Self> {
        let file = open_regular(path)?;
        let length = file.metadata().map_err(Error::system("asking for a file's length"))?.len();
        check(&transfers, options, length)?;
        // Advice only: a file system that takes none reads all the same.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let pieces = pieces(&transfers, options.piece_bytes);
        let mut missing = vec![0; transfers.len()];
        for piece in &pieces {
            missing[piece.transfer] += 1;
        }
        let shared = Arc::new(Shared {
            direct: if options.direct { open_direct(path) } else { None },
            file,
            transfers,
            next: AtomicUsize::new(0),
            state: Mutex::new(State { missing, released: 0, stopped: false, failure: None }),
            changed: Condvar::new(),
            pieces,
        });
        let reader = Self { shared, threads: Mutex::default() };
        for _ in 0..options.threads.min(reader.shared.pieces.len()) {
            let shared = Arc::clone(&reader.shared);
            let thread = std::thread::Builder::new().name("cosmos-fast weights".into());
            let started = thread.spawn(move || shared.work());
            let started = started.map_err(Error::system("starting a thread"))?;
            reader.lock_threads().push(started);
        }
        Ok(reader)
    }

    /// Waits until the transfer has landed.
    pub fn wait(&self, transfer: usize) -> Result<()> {
        let mut state = self.shared.lock();
        loop {
            let Some(&missing) = state.missing.get(transfer) else {
                let count = self.shared.transfers.len();
                return Err(Error::Argument(format!("transfer {transfer} of {count}")));
            };
            if missing == 0 {
                return Ok(());
            }
            if let Some(failure) = &state.failure {
                return Err(Error::Checkpoint(failure.clone()));
            }
            if state.stopped {
                return Err(Error::Cancelled);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The memory of the first `transfers` of the list may be written to again.
    pub fn release(&self, transfers: usize) {
        let mut state = self.shared.lock();
        state.released = state.released.max(transfers);
        self.shared.changed.notify_all();
    }

    /// Ends what is under way: no byte is written afterwards, and whoever waits is told.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.lock_threads().drain(..) {
            // A thread that panicked has told whoever waits.
            let _ = thread.join();
        }
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.direct.is_some()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let _alarm = Alarm(self);
        let mut scratch = Scratch::default();
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&piece) = self.pieces.get(index) else {
                return;
            };
            if !self.may_write(piece.transfer) {
                return;
            }
            let landed = self.bring(piece, &mut scratch);
            let mut state = self.lock();
            match landed {
                Ok(()) => state.missing[piece.transfer] -= 1,
                Err(error) => state.failure = Some(error.to_string()),
            }
            self.changed.notify_all();
        }
    }

    /// Waits for the gate; false where the work has ended meanwhile.
    fn may_write(&self, transfer: usize) -> bool {
        let gate = self.transfers[transfer].gate;
        let mut state = self.lock();
        while !state.stopped && state.failure.is_none() && state.released < gate {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped && state.failure.is_none()
    }

    fn bring(&self, piece: Piece, scratch: &mut Scratch) -> Result<()> {
        let transfer = &self.transfers[piece.transfer];
        let offset = transfer.offset + piece.offset;
        match transfer.kind {
            Kind::Copy => {
                let address = transfer.target + piece.offset as usize;
                // SAFETY: `Reader::start`'s caller lends this memory to this transfer, whose
                // pieces do not overlap; this thread alone has this piece.
                let target =
                    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, piece.bytes) };
                if self.direct.is_some() {
                    target.copy_from_slice(self.read_aside(offset, piece.bytes, scratch)?);
                    return Ok(());
                }
                self.read(offset, target)
            }
            Kind::Float32ToBfloat16 => {
                let address = transfer.target + piece.offset as usize / 2;
                let count = piece.bytes / 4;
                let bytes = self.read_aside(offset, piece.bytes, scratch)?;
                // SAFETY: as above; the target was checked to be aligned, and its pieces are cut
                // between values.
                let target = unsafe { std::slice::from_raw_parts_mut(address as *mut bf16, count) };
                round(bytes, target);
                Ok(())
            }
        }
    }

    /// Bytes of the file, in memory of this thread, past the page cache where that was asked for.
    fn read_aside<'a>(
        &self,
        offset: u64,
        bytes: usize,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [u8]> {
        let ahead = (offset % BLOCK as u64) as usize;
        let space = scratch.aligned((ahead + bytes).next_multiple_of(BLOCK));
        if let Some(direct) = &self.direct {
            let mut done = 0;
            while done < ahead + bytes {
                let place = offset - ahead as u64 + done as u64;
                match direct.read_at(&mut space[done..], place) {
                    Ok(count) if count > 0 && count % BLOCK == 0 => done += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // The last block of a file is short, and file systems refuse direct reads
                    // in ways of their own: the ordinary read below knows what is wrong, if any.
                    Ok(count) => {
                        done += count;
                        break;
                    }
                    Err(_) => break,
                }
            }
            if done >= ahead + bytes {
                return Ok(&space[ahead..ahead + bytes]);
            }
        }
        let wanted = &mut space[ahead..ahead + bytes];
        self.read(offset, wanted)?;
        Ok(wanted)
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        use std::io::ErrorKind::UnexpectedEof;
        self.file.read_exact_at(target, offset).map_err(|error| match error.kind() {
            UnexpectedEof => Error::checkpoint("the file was cut while it was read"),
            _ => Error::Checkpoint(format!("the file cannot be read: {error}")),
        })
    }
}

/// Tells whoever waits that the thread which holds it has panicked.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().failure = Some("a reading thread panicked".into());
            self.0.changed.notify_all();
        }
    }
}

/// Memory of a thread, at an address that direct reads can use.
#[derive(Default)]
struct Scratch(Vec<u8>);

impl Scratch {
    fn aligned(&mut self, bytes: usize) -> &mut [u8] {
        if self.0.len() < bytes + BLOCK {
            self.0.resize(bytes + BLOCK, 0);
        }
        let skip = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[skip..skip + bytes]
    }
}

fn round(bytes: &[u8], target: &mut [bf16]) {
    const GROUP: usize = 1024;
    let mut values = [0.0_f32; GROUP];
    for (bytes, target) in bytes.chunks(4 * GROUP).zip(target.chunks_mut(GROUP)) {
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        target.convert_from_f32_slice(&values[..target.len()]);
    }
}

fn open_direct(path: &Path) -> Option<File> {
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed());
    options.open(path).ok()
}

fn check(transfers: &[Transfer], options: Options, length: u64) -> Result<()> {
    let Options { threads, piece_bytes, .. } = options;
    if !(1..=MOST_THREADS).contains(&threads) {
        let message = format!("{threads} threads: 1 to {MOST_THREADS} are possible");
        return Err(Error::Argument(message));
    }
    if !(SMALLEST_PIECE..=LARGEST_PIECE).contains(&piece_bytes) || piece_bytes % BLOCK != 0 {
        return Err(Error::Argument(format!(
            "pieces of {piece_bytes} bytes: {SMALLEST_PIECE} to {LARGEST_PIECE}, in steps of {BLOCK}"
        )));
    }
    for (index, transfer) in transfers.iter().enumerate() {
        let Transfer { offset, bytes, target, kind, gate } = *transfer;
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(Error::Checkpoint(format!(
                "bytes {offset} to {offset} + {bytes} of a file of {length}: it was cut"
            )));
        }
        if target == 0 || target.checked_add(bytes as usize).is_none() || gate > index {
            let message = format!("transfer {index}: an address, and a gate before itself");
            return Err(Error::Argument(message));
        }
        if kind == Kind::Float32ToBfloat16 && (bytes % 4 != 0 || target % 2 != 0) {
            let message = format!("transfer {index}: whole float32 to aligned bfloat16 is needed");
            return Err(Error::Argument(message));
        }
    }
    Ok(())
}

/// Every transfer in pieces, in order. Pieces that are copied end at multiples of `most` in the
/// file, so that direct reads need no block twice; pieces that are rounded hold whole values.
fn pieces(transfers: &[Transfer], most: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (transfer, &Transfer { offset: start, bytes, kind, .. }) in transfers.iter().enumerate() {
        let mut offset = 0;
        while offset < bytes {
            let whole = match kind {
                Kind::Copy => most as u64 - (start + offset) % most as u64,
                Kind::Float32ToBfloat16 => most as u64,
            };
            let length = whole.min(bytes - offset);
            pieces.push(Piece { transfer, offset, bytes: length as usize });
            offset += length;
        }
    }
    pieces
}
