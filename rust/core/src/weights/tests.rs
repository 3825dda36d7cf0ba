//! The parsers against the official crate, a writer of archives and random damage; the reader
//! against the file's own bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use half::bf16;
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::Error;

fn safetensors_file() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::I64]);
    let tensor = (dtype, prop::collection::vec(0_usize..6, 0..4));
    let tensors = prop::collection::btree_map("[a-z.\"\\\\é]{1,12}", tensor, 0..12);
    let metadata = prop::option::of(prop::collection::hash_map("[a-z]{1,4}", ".{0,8}", 0..3));
    (tensors, metadata).prop_map(|(tensors, metadata)| {
        let data: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, (dtype, shape))| {
                let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                let bytes = (0..length).map(|index| index as u8).collect();
                (name, (dtype, shape, bytes))
            })
            .collect();
        let views = data.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        // Without a tensor the official crate writes metadata that is not JSON.
        let metadata = metadata.filter(|_| !data.is_empty());
        safetensors::serialize(views, metadata).unwrap()
    })
}

/// Cut, lengthened, or with bytes that were changed to ones that mean something.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:0918-.e\\ud\0".to_vec())];
    prop::collection::vec((any::<usize>(), byte), 0..6)
}

fn damaged(mut file: Vec<u8>, damage: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
    for &(place, byte) in damage {
        if !file.is_empty() {
            // Mostly where the structure is.
            let place =
                if place & 1 == 0 { place % file.len().min(200) } else { place % file.len() };
            file[place] = byte;
        }
    }
    if let Some(cut) = cut {
        file.truncate(cut % (file.len() + 1));
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn headers_are_read_as_the_official_crate_reads_them(file in safetensors_file()) {
        let ours = read_header(file.as_slice()).unwrap();
        let theirs = SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(ours.tensors.len(), theirs.len());
        for tensor in &ours.tensors {
            let view = theirs.tensor(&tensor.name).unwrap();
            let shape: Vec<usize> = tensor.shape.iter().map(|axis| *axis as usize).collect();
            prop_assert_eq!(shape, view.shape());
            prop_assert_eq!(tensor.dtype, view.dtype().to_string());
            prop_assert_eq!(&file[tensor.start as usize..tensor.end as usize], view.data());
        }
    }

    #[test]
    fn damaged_headers_are_refused_where_the_official_crate_refuses(
        file in safetensors_file(),
        damage in damage(),
        cut in prop::option::weighted(0.2, any::<usize>()),
    ) {
        let file = damaged(file, &damage, cut);
        let theirs = SafeTensors::deserialize(&file);
        match read_header(file.as_slice()) {
            Ok(_) => prop_assert!(theirs.is_ok(), "{:?}", theirs),
            // Keys that are there twice are refused by us alone.
            Err(Error::Checkpoint(why)) => prop_assert!(theirs.is_err() || why.contains("twice"), "{why}"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn archives_are_read_as_they_were_written(
        sizes in prop::collection::vec(0_usize..300, 0..20),
        wide in any::<bool>(),
        comment in 0_usize..40,
    ) {
        let (file, stretches) = archive(&sizes, wide, comment);
        let entries = read_directory(file.as_slice()).unwrap();
        prop_assert_eq!(entries.len(), sizes.len());
        for (entry, (start, length)) in entries.iter().zip(stretches) {
            prop_assert_eq!((entry.start, entry.end), (start, start + length as u64));
        }
    }

    #[test]
    fn damaged_archives_never_do_worse_than_being_refused(
        sizes in prop::collection::vec(0_usize..60, 0..6),
        wide in any::<bool>(),
        places in damage(),
        cut in prop::option::weighted(0.3, any::<usize>()),
    ) {
        let (mut file, _) = archive(&sizes, wide, 0);
        file.reverse(); // the directory is at the end: damage it, not the content
        let places: Vec<_> = places.iter().map(|(place, byte)| (place & !1, *byte)).collect();
        let mut file = damaged(file, &places, cut);
        file.reverse();
        if let Ok(entries) = read_directory(file.as_slice()) {
            for entry in entries {
                prop_assert!(entry.start <= entry.end && entry.end <= file.len() as u64);
            }
        }
    }
}

/// An archive as torch writes it, and where its entries are.
fn archive(sizes: &[usize], wide: bool, comment: usize) -> (Vec<u8>, Vec<(u64, usize)>) {
    let (mut file, mut directory, mut stretches) = (Vec::new(), Vec::new(), Vec::new());
    for (index, &size) in sizes.iter().enumerate() {
        let name = format!("model/data/{index}");
        let local = file.len() as u64;
        let padding = 63 - (file.len() + 30 + name.len()) % 63;
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([0; 8]);
        file.extend((name.len() as u16).to_le_bytes());
        file.extend((padding as u16).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(std::iter::repeat_n(b'Z', padding));
        stretches.push((file.len() as u64, size));
        file.extend(std::iter::repeat_n(index as u8, size));

        let narrow = |value: u64| if wide { u32::MAX } else { value as u32 };
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend(narrow(size as u64).to_le_bytes());
        directory.extend(narrow(size as u64).to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend((if wide { 28_u16 } else { 0 }).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(narrow(local).to_le_bytes());
        directory.extend(name.as_bytes());
        if wide {
            directory.extend([1, 0, 24, 0]);
            for value in [size as u64, size as u64, local] {
                directory.extend(value.to_le_bytes());
            }
        }
    }
    let (start, length, count) = (file.len() as u64, directory.len() as u64, sizes.len() as u64);
    file.extend(directory);
    if wide {
        let end = file.len() as u64;
        file.extend(b"PK\x06\x06");
        file.extend(44_u64.to_le_bytes());
        file.extend([0; 12]);
        for value in [count, count, length, start] {
            file.extend(value.to_le_bytes());
        }
        file.extend(b"PK\x06\x07\0\0\0\0");
        file.extend(end.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
    }
    file.extend(b"PK\x05\x06\0\0\0\0");
    let small = if wide { [u16::MAX; 2] } else { [count as u16; 2] };
    file.extend(small.iter().flat_map(|value| value.to_le_bytes()));
    let places = if wide { [u32::MAX; 2] } else { [length as u32, start as u32] };
    file.extend(places.iter().flat_map(|value| value.to_le_bytes()));
    file.extend((comment as u16).to_le_bytes());
    file.extend(std::iter::repeat_n(b'P', comment));
    (file, stretches)
}

fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn options(threads: usize, direct: bool) -> Options {
    Options { threads, piece_bytes: 64 << 10, direct }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_lands_is_what_the_file_holds(
        cuts in prop::collection::vec(0_usize..600_000, 1..6),
        seed in any::<u32>(),
        threads in 1_usize..6,
        direct in any::<bool>(),
        round in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut * 4).collect();
        cuts.extend([0, 2_400_000]);
        cuts.sort_unstable();
        let values: Vec<f32> =
            (0..600_000_u32).map(|index| f32::from_bits(index.wrapping_mul(seed | 1))).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let file = written(&bytes);
        let mut memory = vec![bf16::ZERO; if round { 600_000 } else { 1_200_000 }];
        let kind = if round { Kind::Float32ToBfloat16 } else { Kind::Copy };
        let base = memory.as_mut_ptr() as usize;
        let transfer = |pair: &[usize]| Transfer {
            offset: pair[0] as u64,
            bytes: (pair[1] - pair[0]) as u64,
            target: base + if round { pair[0] / 2 } else { pair[0] },
            kind,
            gate: 0,
        };
        let transfers: Vec<Transfer> = cuts.windows(2).map(transfer).collect();
        let count = transfers.len();
        // SAFETY: `memory` outlives the reader, and the transfers share no byte of it.
        let reader = unsafe { Reader::start(file.path(), transfers, options(threads, direct)) };
        let reader = reader.unwrap();
        (0..count).for_each(|index| reader.wait(index).unwrap());
        drop(reader);
        let expected: Vec<u16> = if round {
            values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect()
        } else {
            bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
        };
        prop_assert!(memory.iter().map(|value| value.to_bits()).eq(expected));
    }
}

#[test]
fn a_ring_is_written_over_only_after_it_was_released() {
    const TURN: usize = 100_000;
    let bytes: Vec<u8> = (0..10 * TURN).map(|index| (index / TURN) as u8).collect();
    let file = written(&bytes);
    let mut ring = vec![0_u8; 2 * TURN];
    let base = ring.as_mut_ptr() as usize;
    let turn = |index: usize| Transfer {
        offset: (index * TURN) as u64,
        bytes: TURN as u64,
        target: base + index % 2 * TURN,
        kind: Kind::Copy,
        gate: index.saturating_sub(1),
    };
    let transfers = (0..10).map(turn).collect();
    // SAFETY: `ring` outlives the reader; turns that share memory wait for one another.
    let reader = unsafe { Reader::start(file.path(), transfers, options(3, false)) }.unwrap();
    for index in 0..10 {
        reader.wait(index).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let start = (base + index % 2 * TURN) as *const u8;
        // SAFETY: this turn has landed, and the next one into its memory waits for the release.
        let turn = unsafe { std::slice::from_raw_parts(start, TURN) };
        assert!(turn.iter().all(|byte| usize::from(*byte) == index), "turn {index}");
        reader.release(index + 1);
    }
}

#[test]
fn whoever_waits_is_told_of_a_stop_and_of_a_cut() {
    let file = written(&vec![1; 300_000]);
    let mut memory = vec![0_u8; 300_000];
    let transfer = Transfer {
        offset: 0,
        bytes: 100_000,
        target: memory.as_mut_ptr() as usize,
        kind: Kind::Copy,
        gate: 0,
    };
    let gated = Transfer { offset: 100_000, gate: 1, ..transfer };
    // SAFETY: `memory` outlives the readers; the second transfer waits for a release.
    let start = |transfers| unsafe { Reader::start(file.path(), transfers, options(2, false)) };
    let reader = start(vec![transfer, gated]).unwrap();
    reader.wait(0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(matches!(reader.wait(1), Err(Error::Cancelled))));
        std::thread::sleep(Duration::from_millis(20));
        reader.stop();
    });
    assert!(matches!(reader.wait(2), Err(Error::Argument(_))));
    drop(reader);

    let reader = start(vec![transfer, gated]).unwrap();
    reader.wait(0).unwrap();
    file.as_file().set_len(150_000).unwrap();
    reader.release(1);
    assert!(matches!(reader.wait(1), Err(Error::Checkpoint(_))));
    drop(reader);
    assert!(matches!(start(vec![transfer, gated]), Err(Error::Checkpoint(_))));
}

#[test]
fn unreasonable_transfers_are_refused() {
    let file = written(&[0; 100]);
    let mut memory = [0_u8; 100];
    let good = Transfer {
        offset: 0,
        bytes: 100,
        target: memory.as_mut_ptr() as usize,
        kind: Kind::Copy,
        gate: 0,
    };
    let options = options(2, false);
    // SAFETY: `memory` outlives every reader.
    let start = |transfer, options| unsafe { Reader::start(file.path(), vec![transfer], options) };
    assert!(start(good, options).is_ok());
    assert!(start(Transfer { bytes: 101, ..good }, options).is_err());
    assert!(start(Transfer { offset: u64::MAX, ..good }, options).is_err());
    assert!(start(Transfer { target: 0, ..good }, options).is_err());
    assert!(start(Transfer { gate: 1, ..good }, options).is_err());
    let kind = Kind::Float32ToBfloat16;
    assert!(start(Transfer { kind, bytes: 99, ..good }, options).is_err());
    assert!(start(Transfer { kind, target: good.target | 1, bytes: 40, ..good }, options).is_err());
    assert!(start(good, Options { threads: 0, ..options }).is_err());
    assert!(start(good, Options { piece_bytes: 4096, ..options }).is_err());
    assert!(open_regular(std::path::Path::new("/dev/null")).is_err());
    assert!(open_regular(std::env::temp_dir().as_path()).is_err());
}
