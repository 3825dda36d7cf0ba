//! Real processes, fed and read and stopped.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cosmos_fast_core::media::{
    Bounds, Capture, FrameReader, FrameWriter, Limits, Picture, Program, Waited,
};
use cosmos_fast_core::{Error, Result};
use rustix::fs::{MemfdFlags, memfd_create};

const SLICE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: Bounds = Bounds { side: 4096, pixels: 1 << 24 };

fn shell(script: &str) -> Program {
    let argv = ["/bin/sh", "-c", script].map(Into::into).to_vec();
    Program { argv, stdin: None, stdout: None, limits: Limits::default() }
}

fn wait<T>(mut step: impl FnMut() -> Result<Waited<T>>) -> Result<T> {
    loop {
        if let Waited::Done(value) = step()? {
            return Ok(value);
        }
    }
}

fn pictures(script: &str, patience: Duration) -> Result<Vec<Picture>> {
    let reader = FrameReader::start(shell(script), BOUNDS, 2, patience)?;
    let mut found = Vec::new();
    while let Some(picture) = wait(|| reader.next(SLICE))? {
        found.push(picture);
    }
    Ok(found)
}

#[test]
fn pictures_arrive_in_order_and_whole() {
    let script = "for i in 1 2 3 4 5 6 7; do printf 'P6\\n1024 512\\n255\\n'; \
                  head -c 1572864 /dev/zero | tr '\\0' $i; done";
    let found = pictures(script, PATIENCE).unwrap();
    assert_eq!(found.len(), 7);
    for (picture, digit) in found.iter().zip(b"1234567") {
        assert_eq!((picture.height, picture.width), (512, 1024));
        assert!(picture.data.iter().all(|byte| byte == digit));
    }
}

#[test]
fn a_program_that_hangs_is_stopped_in_time() {
    let start = Instant::now();
    let how = pictures("trap '' TERM; sleep 60; sleep 60", Duration::from_millis(200));
    assert!(matches!(how, Err(Error::Deadline { .. })), "{how:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_slow_caller_is_not_the_programs_fault() {
    let script = "while :; do printf 'P6\\n64 64\\n255\\n'; head -c 12288 /dev/zero; done";
    let patience = Duration::from_millis(300);
    let reader = FrameReader::start(shell(script), BOUNDS, 1, patience).unwrap();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(150));
        assert!(wait(|| reader.next(SLICE)).unwrap().is_some());
    }
}

#[test]
fn what_was_written_is_what_the_program_reads() {
    let mut file = File::from(memfd_create("out", MemfdFlags::CLOEXEC).unwrap());
    let stdout = Some(OwnedFd::from(file.try_clone().unwrap()));
    let program = Program { stdout, ..shell("cat") };
    let writer = FrameWriter::start(program, 100_000, 3, PATIENCE).unwrap();
    for value in 0..50u8 {
        wait(|| {
            writer.write(SLICE, |memory| {
                memory.fill(value);
                Ok(())
            })
        })
        .unwrap();
    }
    writer.close();
    wait(|| writer.wait(SLICE)).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 50 * 100_000);
    for (value, frame) in (0..50u8).zip(bytes.chunks(100_000)) {
        assert!(frame.iter().all(|byte| *byte == value));
    }
}

#[test]
fn a_program_that_leaves_early_is_an_error_and_a_pausing_caller_is_none() {
    let writer = FrameWriter::start(shell("cat"), 10, 2, Duration::from_millis(200)).unwrap();
    let write = |writer: &FrameWriter| wait(|| writer.write(SLICE, |_| Ok(())));
    write(&writer).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    write(&writer).unwrap();
    writer.close();
    wait(|| writer.wait(SLICE)).unwrap();

    let writer = FrameWriter::start(shell("exit 0"), 1 << 20, 2, PATIENCE).unwrap();
    let how = (0..20).try_for_each(|_| write(&writer));
    assert!(matches!(how, Err(Error::Exit { .. })), "{how:?}");
}

#[test]
fn stopping_wakes_a_caller_that_waits() {
    let writer = FrameWriter::start(shell("sleep 60"), 1 << 20, 1, PATIENCE).unwrap();
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| (0..9).try_for_each(|_| wait(|| writer.write(SLICE, |_| Ok(())))));
        std::thread::sleep(Duration::from_millis(200));
        writer.stop();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
}

#[test]
fn text_is_captured_up_to_its_limit() {
    let text = |script: &str, most| {
        let capture = Capture::start(shell(script), most, PATIENCE).unwrap();
        wait(|| capture.wait(SLICE))
    };
    assert_eq!(text("echo one; echo two", 100).unwrap(), b"one\ntwo\n");
    assert!(matches!(text("cat /dev/zero", 100_000), Err(Error::Stream(_))));
    let how = text("echo why >&2; exit 3", 100);
    assert!(how.unwrap_err().to_string().contains("why"));
}
