//! Real processes, fed and read and stopped.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
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
fn the_largest_limits_are_no_limits() {
    let limits = Limits { memory: Some(u64::MAX), cpu_seconds: Some(u64::MAX), file: None };
    let capture = Capture::start(Program { limits, ..shell("ulimit -t") }, 100, PATIENCE).unwrap();
    let most = rustix::process::getrlimit(rustix::process::Resource::Cpu).maximum;
    let expected = most.map_or("unlimited".into(), |seconds| seconds.to_string()) + "\n";
    assert_eq!(wait(|| capture.wait(SLICE)).unwrap(), expected.as_bytes());
}

/// What a program prints, by a host whose thread blocks signals, ignores some and handles others.
fn said_under_a_host_with_signals(program: Program) -> Result<String> {
    extern "C" fn never(_: libc::c_int) {}
    let capture = std::thread::spawn(move || {
        // SAFETY: signals that nothing else in these tests uses; the sets are filled by the calls.
        unsafe {
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut blocked);
            libc::sigaddset(&raw mut blocked, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
            libc::signal(libc::SIGUSR1, never as *const () as libc::sighandler_t);
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        }
        Capture::start(program, 10_000, PATIENCE)
    });
    let capture = capture.join().expect("it starts a program, or says why not")?;
    Ok(String::from_utf8_lossy(&wait(|| capture.wait(SLICE))?).into_owned())
}

#[test]
fn a_program_starts_with_signals_as_it_expects_them() {
    let said = said_under_a_host_with_signals(shell("cat /proc/self/status")).unwrap();
    let set = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let bit = |signal: i32| 1_u64 << (signal - 1);
    assert_eq!(set("SigBlk"), 0);
    assert_eq!(set("SigCgt"), 0);
    assert_eq!(set("SigIgn") & bit(libc::SIGPIPE), 0, "it ends where nobody reads it");
    assert_ne!(set("SigIgn") & bit(libc::SIGUSR2), 0, "what the host ignores stays ignored");
}

#[test]
fn a_start_copies_nothing_of_this_process() {
    static FORKS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler may run at any fork.
    assert_eq!(unsafe { libc::pthread_atfork(Some(count), None, None) }, 0);
    assert_eq!(said_under_a_host_with_signals(shell("echo here")).unwrap(), "here\n");
    assert_eq!(FORKS.load(Ordering::Relaxed), 0);
}

#[test]
fn a_program_has_its_streams_its_root_and_its_group_and_nothing_else() {
    let open = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap(); // no CLOEXEC
    let said = said_under_a_host_with_signals(shell(
        "pwd; tr '\\0' '\\n' </proc/$$/environ | sort; \
         cut -d' ' -f5 /proc/$$/stat | grep -qw $$ && echo leader; \
         readlink /proc/$$/fd/0; exec ls /proc/self/fd",
    ))
    .unwrap();
    // 3 is what ls reads.
    let expected =
        "/\nLANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin\nleader\n/dev/null\n0\n1\n2\n3\n";
    assert_eq!(said, expected);
}

#[test]
fn what_cannot_be_started_is_told_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "echo no first line").unwrap();
    let program = |name: &str| {
        let argv = vec![name.into()];
        Program { argv, stdin: None, stdout: None, limits: Limits::default() }
    };
    let start = |name: &str| said_under_a_host_with_signals(program(name));
    for (name, kind) in [
        ("/no/such/program", std::io::ErrorKind::NotFound),
        ("no-such-program", std::io::ErrorKind::NotFound),
        (plain.to_str().unwrap(), std::io::ErrorKind::PermissionDenied),
    ] {
        let Err(Error::Spawn { source, .. }) = start(name) else { panic!("{name} started") };
        assert_eq!(source.kind(), kind, "{name}");
    }
    assert_eq!(start("true").unwrap(), "", "found in the fixed PATH");
    std::fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(start(plain.to_str().unwrap()).unwrap(), "no first line\n", "a shell's script");
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
