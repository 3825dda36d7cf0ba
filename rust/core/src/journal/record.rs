//! What the bytes of a journal mean.
//!
//! A header of 16 bytes: magic (8), version (4), CRC-32 of both (4). Then records: marker (4),
//! length of the payload (4), CRC-32 of length and payload (4), payload. Numbers are little-endian.

use crate::{Error, Result};

/// Of the format.
pub const VERSION: u32 = 1;
/// Bytes that a payload may have.
pub const LARGEST: usize = 64 << 10;
/// Bytes of the header.
pub(super) const HEADER: usize = 16;

const MAGIC: &[u8; 8] = b"CFJOURNL";
const MARKER: [u8; 4] = [0xC5, 0x5F, 0x0A, 0x9D];
/// Bytes before a payload.
const FRONT: usize = 12;

/// What stands where no whole record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// Nothing.
    End,
    /// The beginning of a record, or a damaged length that points behind the end.
    Short,
    /// Something else.
    Damaged,
}

/// The header of a new journal.
pub(super) fn header() -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Why `bytes` are not the header of a journal of this version.
pub(super) fn check_header(bytes: &[u8]) -> std::result::Result<(), String> {
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err("no journal of cosmos-fast".into());
    }
    if crc32fast::hash(&bytes[..12]) != number(&bytes[12..]) {
        return Err("the journal's header is damaged".into());
    }
    match number(&bytes[8..]) {
        VERSION => Ok(()),
        other => Err(format!("a journal of version {other}, and this program writes {VERSION}")),
    }
}

/// Appends the record of `payload` to `target`.
pub(super) fn encode(payload: &[u8], target: &mut Vec<u8>) -> Result<()> {
    if payload.is_empty() || payload.len() > LARGEST {
        return Err(Error::Argument(format!(
            "a journal record of {} bytes: 1 to {LARGEST} are possible",
            payload.len()
        )));
    }
    let length = (payload.len() as u32).to_le_bytes();
    target.extend_from_slice(&MARKER);
    target.extend_from_slice(&length);
    target.extend_from_slice(&checksum(length, payload).to_le_bytes());
    target.extend_from_slice(payload);
    Ok(())
}

/// The payload at the start of `bytes`, and the length of its record.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<(&[u8], usize), Scan> {
    if bytes.is_empty() {
        return Err(Scan::End);
    }
    let marked = bytes.len().min(MARKER.len());
    if bytes[..marked] != MARKER[..marked] {
        return Err(Scan::Damaged);
    }
    if bytes.len() < FRONT {
        return Err(Scan::Short);
    }
    let length = number(&bytes[4..]) as usize;
    if length == 0 || length > LARGEST {
        return Err(Scan::Damaged);
    }
    let payload = bytes.get(FRONT..FRONT + length).ok_or(Scan::Short)?;
    if checksum((length as u32).to_le_bytes(), payload) != number(&bytes[8..]) {
        return Err(Scan::Damaged);
    }
    Ok((payload, FRONT + length))
}

/// Where `bytes` hold a whole record.
pub(super) fn next_record(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|&at| decode(&bytes[at..]).is_ok())
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
