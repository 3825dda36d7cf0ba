//! Throws damaged weight files at both parsers: `cargo run --release --example fuzz_weights -- 60`.
//!
//! Arguments: seconds (60) and the seed (the clock's). A file that is accepted must be sound: every
//! tensor inside the file, none overlapping, and for safetensors the official crate must accept it
//! too. A file that is refused must be refused in bounded time and memory. Whatever breaks a rule is
//! written to the temporary folder, and the run ends with an error.

#![expect(clippy::print_stdout, reason = "a program that reports to a person")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cosmos_fast_core::weights::{read_directory, read_header};

/// A small file may cost this much memory; the tables of both parsers grow with what was read.
const MOST_BYTES: usize = 4 << 20;
const LONGEST: Duration = Duration::from_millis(500);
const LARGEST_FILE: usize = 16 << 10;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64* (Vigna, 2016): the same seed makes the same run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = arguments.next().map_or(Ok(clock), |text| text.parse())?;
    println!("{seconds} s, seed {seed}");
    let mut dice = Dice(seed | 1);
    let mut pool: Vec<Vec<u8>> = (0..8).map(|_| safetensors(&mut dice)).collect();
    pool.extend((0..8).map(|_| archive(&mut dice)));
    let (start, mut cases, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut file = dice.pick(&pool).clone();
        for _ in 0..=dice.below(6) {
            mutate(&mut file, &mut dice);
        }
        file.truncate(LARGEST_FILE);
        match judge(&file) {
            Ok(sound) => accepted += u64::from(sound),
            Err(fault) => return Err(keep(&file, &fault)?.into()),
        }
        cases += 1;
        // The pool drifts away from good files, and is refreshed with them.
        let place = dice.below(pool.len());
        match cases % 64 {
            0 => pool[place] = safetensors(&mut dice),
            32 => pool[place] = archive(&mut dice),
            _ if dice.below(8) == 0 => pool[place] = file,
            _ => {}
        }
    }
    println!("{cases} files, {accepted} of them sound: no fault");
    Ok(())
}

/// Whether a parser took the file; an error where it should not have, or took too much.
fn judge(file: &[u8]) -> Result<bool, String> {
    let (start, before) = (Instant::now(), HELD.load(Ordering::Relaxed));
    PEAK.store(before, Ordering::Relaxed);
    let (header, directory) = (read_header(file), read_directory(file));
    let took = start.elapsed();
    let more = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    if took > LONGEST || more > MOST_BYTES {
        return Err(format!("{took:?} and {more} bytes for a file of {}", file.len()));
    }
    if let Ok(header) = &header {
        let spans = header.tensors.iter().map(|tensor| (tensor.start, tensor.end));
        check_spans(spans.collect(), file.len() as u64)?;
        if let Err(error) = safetensors::SafeTensors::deserialize(file) {
            return Err(format!("taken, but not by the official crate: {error}"));
        }
    }
    if let Ok(entries) = &directory {
        let spans = entries.iter().map(|entry| (entry.start, entry.end));
        check_spans(spans.collect(), file.len() as u64)?;
    }
    Ok(header.is_ok() || directory.is_ok())
}

fn check_spans(mut spans: Vec<(u64, u64)>, length: u64) -> Result<(), String> {
    spans.sort_unstable();
    if spans.iter().any(|&(start, end)| start > end || end > length) {
        return Err(format!("{spans:?} is not within {length} bytes"));
    }
    match spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(format!("{pair:?} overlap")),
        None => Ok(()),
    }
}

fn keep(file: &[u8], fault: &str) -> Result<String, Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("fuzz_weights-{}.bin", std::process::id()));
    std::fs::write(&path, file)?;
    Ok(format!("{fault}; the file is {}", path.display()))
}

/// One step away from a file: bytes, numbers, and pieces of structure.
fn mutate(file: &mut Vec<u8>, dice: &mut Dice) {
    const WORDS: [&[u8]; 18] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"-1",
        b"1e9",
        b"18446744073709551615",
        b"null",
        b"\"F32\"",
        b"\"data_offsets\"",
        b"\"__metadata__\"",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"\\u0000",
        b"\xff\xff\xff\xff",
    ];
    const NUMBERS: [u64; 10] =
        [0, 1, 7, 8, 0x7fff_ffff, 0xffff, 0xffff_ffff, u64::MAX, 1 << 63, u64::MAX - 7];
    // Mostly where the structure is: at either end.
    let place = match dice.below(3) {
        0 => dice.below(file.len().min(256)),
        1 => file.len() - dice.below(file.len().min(512)).min(file.len()),
        _ => dice.below(file.len()),
    };
    let place = place.min(file.len());
    match dice.below(8) {
        0 if place < file.len() => file[place] = dice.roll() as u8,
        1 if place < file.len() => file[place] ^= 1 << dice.below(8),
        2 => {
            let number = dice.pick(&NUMBERS).to_le_bytes();
            let width = *dice.pick(&[2, 4, 8]);
            for (target, byte) in file[place..].iter_mut().zip(&number[..width]) {
                *target = *byte;
            }
        }
        3 => {
            let word = *dice.pick(&WORDS);
            file.splice(place..place, word.iter().copied());
        }
        4 => file.truncate(place),
        5 => {
            let end = (place + dice.below(64)).min(file.len());
            let piece = file[place..end].to_vec();
            let to = dice.below(file.len() + 1);
            file.splice(to..to, piece);
        }
        6 => {
            let end = (place + dice.below(32)).min(file.len());
            file.drain(place..end);
        }
        // The length of a header is made to fit again, or what is behind it is never reached.
        _ if file.len() > 8 => {
            let length = (file.len() - 8 - dice.below(file.len() - 8).min(64)) as u64;
            file[..8].copy_from_slice(&length.to_le_bytes());
        }
        _ => {}
    }
}

/// A safetensors file as it should be.
fn safetensors(dice: &mut Dice) -> Vec<u8> {
    let (mut json, mut end) = (String::from("{"), 0);
    if dice.below(2) == 0 {
        json += r#""__metadata__":{"format":"pt"},"#;
    }
    let count = 1 + dice.below(5);
    for index in 0..count {
        let (rows, columns) = (dice.below(5), 1 + dice.below(6));
        let (dtype, width) = *dice.pick(&[("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]);
        let start = end;
        end += rows * columns * width;
        write!(
            json,
            r#""t{index}":{{"dtype":"{dtype}","shape":[{rows},{columns}],"data_offsets":[{start},{end}]}},"#
        )
        .expect("a string takes everything");
    }
    json.pop();
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.extend(std::iter::repeat_n(7, end));
    file
}

/// A `.pt` archive as it should be.
fn archive(dice: &mut Dice) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let count = 1 + dice.below(4) as u16;
    for index in 0..count {
        let (name, size) = (format!("m/data/{index}"), dice.below(80) as u32);
        let local = file.len() as u32;
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        file.extend((name.len() as u16).to_le_bytes());
        file.extend([0, 0]);
        file.extend(name.as_bytes());
        file.extend(std::iter::repeat_n(index as u8, size as usize));
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, length) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}
