//! ffmpeg and media files: `cosmos_fast_core::media`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cosmos_fast_core::media::{
    self, Bounds, Capture, FrameReader, FrameWriter, Kind, Limits, Program, Tail, Waited,
};
use cosmos_fast_core::pack::{self, Orientation, Shape};
use cosmos_fast_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::buffers::Array;
use crate::errors::to_python;
use crate::pack::fit_named;

/// How long a wait lasts before signals are looked after.
const SLICE: Duration = Duration::from_millis(50);

/// Waits with the interpreter released until `step` is done; Ctrl-C is noticed in between.
fn wait<T: Send>(
    py: Python<'_>,
    mut step: impl FnMut() -> Result<Waited<T>> + Send,
) -> PyResult<T> {
    loop {
        match py.detach(&mut step).map_err(|error| to_python(py, &error))? {
            Waited::Done(value) => return Ok(value),
            Waited::NotYet => py.check_signals()?,
        }
    }
}

/// A descriptor of our own for the file that Python calls `fd`.
fn duplicate(py: Python<'_>, fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(to_python(py, &Error::Argument(format!("{fd} is no file descriptor"))));
    }
    // SAFETY: the caller keeps `fd` open during this call; a closed one gives an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}

fn seconds(py: Python<'_>, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        let message = format!("{value} s is no time limit: a number of at least 0 is needed");
        to_python(py, &Error::Argument(message))
    })
}

/// What a child process may use; 0 leaves a limit as it is for this process.
#[pyclass(frozen, from_py_object)]
#[derive(Clone, Copy)]
pub struct ProcessLimits {
    limits: Limits,
    patience: Duration,
}

#[pymethods]
impl ProcessLimits {
    #[new]
    #[pyo3(signature = (*, seconds, cpu_seconds=0, memory_bytes=0, file_bytes=None))]
    fn new(
        py: Python<'_>,
        seconds: f64,
        cpu_seconds: u64,
        memory_bytes: u64,
        file_bytes: Option<u64>,
    ) -> PyResult<Self> {
        let some = |limit: u64| Some(limit).filter(|&limit| limit > 0);
        let limits =
            Limits { memory: some(memory_bytes), cpu_seconds: some(cpu_seconds), file: file_bytes };
        Ok(Self { limits, patience: self::seconds(py, seconds)? })
    }
}

/// What the file `fd` is, by content: kind, EXIF orientation, more than 8 bits a sample, length.
#[pyfunction]
pub fn inspect(py: Python<'_>, fd: i32) -> PyResult<(&'static str, u8, bool, u64)> {
    let file = File::from(duplicate(py, fd)?);
    let found = py.detach(|| media::inspect(&file)).map_err(|error| to_python(py, &error))?;
    let kind = match found.kind {
        Kind::Jpeg => "jpeg",
        Kind::Png => "png",
        Kind::Webp => "webp",
        Kind::Mp4 => "mp4",
        Kind::Matroska => "matroska",
        Kind::Avi => "avi",
    };
    Ok((kind, found.orientation.tag(), found.deep, found.length))
}

/// What a program prints; `source` becomes its standard input.
#[pyfunction]
#[pyo3(signature = (argv, *, limits, most_bytes, source=None))]
pub fn capture(
    py: Python<'_>,
    argv: Vec<OsString>,
    limits: ProcessLimits,
    most_bytes: usize,
    source: Option<i32>,
) -> PyResult<Bound<'_, PyBytes>> {
    let stdin = source.map(|fd| duplicate(py, fd)).transpose()?;
    let program = Program { argv, stdin, stdout: None, limits: limits.limits };
    let capture = Capture::start(program, most_bytes, limits.patience)
        .map_err(|error| to_python(py, &error))?;
    let printed = wait(py, || capture.wait(SLICE));
    py.detach(|| drop(capture));
    Ok(PyBytes::new(py, &printed?))
}

/// Pictures that may wait between decoder and caller.
const RING: usize = 8;

/// A program that decodes pictures, running beside the caller.
#[pyclass(frozen)]
pub struct Decoder {
    /// Empty once the pictures have been taken or the program was stopped.
    reader: Mutex<Option<FrameReader>>,
}

#[pymethods]
impl Decoder {
    #[new]
    #[pyo3(signature = (argv, *, source, max_side, max_pixels, limits))]
    fn new(
        py: Python<'_>,
        argv: Vec<OsString>,
        source: i32,
        max_side: u32,
        max_pixels: u64,
        limits: ProcessLimits,
    ) -> PyResult<Self> {
        let stdin = Some(duplicate(py, source)?);
        let program = Program { argv, stdin, stdout: None, limits: limits.limits };
        let bounds = Bounds { side: max_side, pixels: max_pixels };
        let reader = FrameReader::start(program, bounds, RING, limits.patience)
            .map_err(|error| to_python(py, &error))?;
        Ok(Self { reader: Mutex::new(Some(reader)) })
    }

    /// Waits for the end of the program and fits its last pictures into `target`.
    ///
    /// Returns how many there were; `target` is untouched where they were too few.
    #[pyo3(signature = (target, *, fit, orientation))]
    fn finish(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        fit: &str,
        orientation: u8,
    ) -> PyResult<u64> {
        let refuse = |error| to_python(py, &error);
        let mut target = Array::<u8>::new(target, "target")?;
        let shape = target.clip_shape(py, false)?;
        let bytes = target.values_mut(py, "target")?;
        let how = fit_named(fit).map_err(refuse)?;
        let orientation = Orientation::new(orientation).map_err(refuse)?;
        let Some(reader) = self.take() else {
            return Err(refuse(Error::argument("the decoder has been finished or stopped")));
        };
        let tail = last_pictures(py, reader, shape.frames)?;
        let seen = tail.seen();
        if seen >= shape.frames as u64 {
            py.detach(|| tail.fit_into(bytes, shape, how, orientation)).map_err(refuse)?;
        }
        Ok(seen)
    }

    /// Ends the program now.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

impl Decoder {
    fn take(&self) -> Option<FrameReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn last_pictures(py: Python<'_>, reader: FrameReader, count: usize) -> PyResult<Tail> {
    let mut tail = Tail::new(count);
    let ended = wait(py, || {
        let start = Instant::now();
        while start.elapsed() < SLICE {
            match reader.next(SLICE)? {
                Waited::Done(Some(picture)) => {
                    if let Some(old) = tail.push(picture) {
                        reader.recycle(old);
                    }
                }
                Waited::Done(None) => return Ok(Waited::Done(())),
                Waited::NotYet => break,
            }
        }
        Ok(Waited::NotYet)
    });
    py.detach(|| drop(reader));
    ended.map(|()| tail)
}

/// Frames on their way into ffmpeg, which runs beside the caller.
#[pyclass(frozen)]
pub struct Encoder {
    writer: FrameWriter,
    height: usize,
    width: usize,
    yuv: bool,
}

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (argv, *, output, size, pixels, ring, limits))]
    fn new(
        py: Python<'_>,
        argv: Vec<OsString>,
        output: i32,
        size: (usize, usize),
        pixels: &str,
        ring: usize,
        limits: ProcessLimits,
    ) -> PyResult<Self> {
        let refuse = |error| to_python(py, &error);
        let (height, width) = size;
        let (yuv, bytes) = match pixels {
            "yuv420p" => (true, pack::yuv420_bytes(height, width).map_err(refuse)?),
            "rgb24" => {
                let pixels = Shape { frames: 1, height, width }.pixels().map_err(refuse)?;
                (false, pixels * 3)
            }
            _ => {
                let message = format!("pixels = {pixels:?}: \"yuv420p\" or \"rgb24\"");
                return Err(refuse(Error::Argument(message)));
            }
        };
        let stdout = Some(duplicate(py, output)?);
        let program = Program { argv, stdin: None, stdout, limits: limits.limits };
        let writer = FrameWriter::start(program, bytes, ring, limits.patience).map_err(refuse)?;
        Ok(Self { writer, height, width, yuv })
    }

    /// Queues pictures (T, H, W, 3) uint8; waits where the queue is full.
    fn write(&self, py: Python<'_>, frames: &Bound<'_, PyAny>) -> PyResult<()> {
        let frames = Array::<u8>::new(frames, "frames")?;
        let Self { height, width, .. } = *self;
        let shape = frames.clip_shape(py, false)?;
        if (shape.height, shape.width) != (height, width) {
            let message = format!(
                "frames of {}x{} (height x width) for a video of {height}x{width}",
                shape.height, shape.width
            );
            return Err(to_python(py, &Error::Argument(message)));
        }
        for picture in frames.values().chunks_exact(height * width * 3) {
            wait(py, || {
                self.writer.write(SLICE, |memory| {
                    if self.yuv {
                        return pack::rgb_to_yuv420(picture, memory, (height, width));
                    }
                    memory.copy_from_slice(picture);
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    /// Waits until everything is encoded and ffmpeg has ended well.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.writer.close();
        wait(py, || self.writer.wait(SLICE))
    }

    /// Ends ffmpeg now.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.writer.stop());
    }
}
