//! The directory of a `.pt` archive: a zip of stored entries, as torch writes it.
//!
//! Nothing in the archive is unpacked or run: an entry is a stretch of the file.

use std::collections::HashSet;

use super::source::{Source, bytes_at};
use crate::{Error, Result};

const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
/// Bytes of an end record with the longest comment there can be.
const LONGEST_END: u64 = 22 + 0xffff;
const LONGEST_DIRECTORY: u64 = 64 << 20;
const MOST_ENTRIES: u64 = 1 << 18;
/// Entries are stored: method 0.
const STORED: u16 = 0;
const ENCRYPTED: u16 = 1;

/// A stretch of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as the archive calls it: torch's storages are `<root>/data/<key>`.
    pub name: String,
    /// Its first byte, from the start of the file.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
}

/// Reads the directory and checks that every entry is a stretch of its own.
pub fn read_directory(source: &(impl Source + ?Sized)) -> Result<Vec<Entry>> {
    let file = source.length()?;
    let place = find_directory(source, file)?;
    if place.bytes > LONGEST_DIRECTORY || place.entries > MOST_ENTRIES {
        return refuse(format!(
            "a directory of {} entries in {} bytes is too large",
            place.entries, place.bytes
        ));
    }
    if place.offset.checked_add(place.bytes).is_none_or(|end| end > file) {
        return refuse("its directory lies beyond its end");
    }
    let directory = bytes_at(source, place.offset, place.bytes as usize)?;
    let mut cursor = Cursor { bytes: &directory };
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..place.entries {
        let entry = central_entry(source, &mut cursor, place.offset)?;
        if !names.insert(entry.name.clone()) {
            return refuse(format!("{:?} is there twice", entry.name));
        }
        entries.push(entry);
    }
    if !cursor.bytes.is_empty() {
        return refuse("its directory is longer than its entries");
    }
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| (entry.start, entry.end));
    if let Some(pair) = order.windows(2).find(|pair| pair[1].start < pair[0].end) {
        return refuse(format!("{:?} and {:?} overlap", pair[0].name, pair[1].name));
    }
    Ok(entries)
}

struct Directory {
    offset: u64,
    bytes: u64,
    entries: u64,
}

fn find_directory(source: &(impl Source + ?Sized), file: u64) -> Result<Directory> {
    let tail = file.min(LONGEST_END);
    let bytes = bytes_at(source, file - tail, tail as usize)?;
    let fits = |start: &usize| {
        let comment = bytes.get(start + 20..start + 22).map(u16_of);
        bytes[*start..].starts_with(&END)
            && comment.is_some_and(|comment| start + 22 + usize::from(comment) == bytes.len())
    };
    let Some(start) = (0..bytes.len()).rev().find(fits) else {
        return refuse("no directory at its end: not an archive, or cut");
    };
    let mut cursor = Cursor { bytes: &bytes[start + 4..] };
    let (disk, first_disk) = (cursor.u16()?, cursor.u16()?);
    let (here, entries) = (cursor.u16()?, cursor.u16()?);
    let (size, offset) = (cursor.u32()?, cursor.u32()?);
    if disk != first_disk || here != entries || (disk != 0 && disk != 0xffff) {
        return refuse("it spans several files");
    }
    let end = file - tail + start as u64;
    if entries == 0xffff || size == u32::MAX || offset == u32::MAX {
        return find_directory_64(source, end);
    }
    let (offset, bytes) = (u64::from(offset), u64::from(size));
    Ok(Directory { offset, bytes, entries: u64::from(entries) })
}

fn find_directory_64(source: &(impl Source + ?Sized), end: u64) -> Result<Directory> {
    let Some(locator) = end.checked_sub(20) else {
        return refuse("its 64-bit directory is missing");
    };
    let bytes = bytes_at(source, locator, 20)?;
    let mut cursor = Cursor { bytes: &bytes };
    let (found, disk) = (cursor.take(4)? == LOCATOR_64, cursor.u32()?);
    let (place, disks) = (cursor.u64()?, cursor.u32()?);
    if !found || disk != 0 || disks > 1 || place.checked_add(56).is_none_or(|end| end > locator) {
        return refuse("its 64-bit directory is missing");
    }
    let bytes = bytes_at(source, place, 56)?;
    let mut cursor = Cursor { bytes: &bytes };
    let found = cursor.take(4)? == END_64;
    cursor.take(12)?;
    let (disk, first_disk) = (cursor.u32()?, cursor.u32()?);
    let (here, entries) = (cursor.u64()?, cursor.u64()?);
    let (bytes, offset) = (cursor.u64()?, cursor.u64()?);
    if !found || disk != first_disk || here != entries {
        return refuse("its 64-bit directory is damaged");
    }
    Ok(Directory { offset, bytes, entries })
}

fn central_entry(
    source: &(impl Source + ?Sized),
    cursor: &mut Cursor,
    directory: u64,
) -> Result<Entry> {
    if cursor.take(4)? != CENTRAL {
        return refuse("its directory is damaged");
    }
    cursor.take(4)?;
    let (flags, method) = (cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let mut packed = u64::from(cursor.u32()?);
    let mut size = u64::from(cursor.u32()?);
    let (name, extra, comment) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
    cursor.take(8)?;
    let mut local = u64::from(cursor.u32()?);
    let name = cursor.take(name.into())?;
    let mut extras = Cursor { bytes: cursor.take(extra.into())? };
    cursor.take(comment.into())?;
    let Ok(text) = std::str::from_utf8(name) else {
        return refuse("the name of an entry is not text");
    };
    let wide = u64::from(u32::MAX);
    while !extras.bytes.is_empty() {
        let (kind, length) = (extras.u16()?, extras.u16()?);
        let mut field = Cursor { bytes: extras.take(length.into())? };
        if kind == 1 {
            for value in [&mut size, &mut packed, &mut local] {
                if *value == wide {
                    *value = field.u64()?;
                }
            }
        }
    }
    if method != STORED || packed != size || flags & ENCRYPTED != 0 {
        return refuse(format!(
            "{text:?} is compressed or encrypted; torch stores entries as they are"
        ));
    }
    let start = local_entry(source, local, name, directory)?;
    match start.checked_add(size) {
        Some(end) if end <= directory => Ok(Entry { name: text.to_owned(), start, end }),
        _ => refuse(format!("{text:?} lies beyond the end of the file")),
    }
}

/// Where the bytes of the entry start whose local header is at `offset`.
fn local_entry(
    source: &(impl Source + ?Sized),
    offset: u64,
    name: &[u8],
    directory: u64,
) -> Result<u64> {
    if offset.checked_add(30).is_none_or(|end| end > directory) {
        return refuse("an entry lies beyond the end of the file");
    }
    let bytes = bytes_at(source, offset, 30)?;
    let mut cursor = Cursor { bytes: &bytes };
    if cursor.take(4)? != LOCAL {
        return refuse("an entry is not where the directory says");
    }
    cursor.take(4)?;
    let method = cursor.u16()?;
    cursor.take(16)?;
    let (length, extra) = (cursor.u16()?, cursor.u16()?);
    let start = offset + 30 + u64::from(length) + u64::from(extra);
    let same = usize::from(length) == name.len() && start <= directory;
    if method != STORED || !same || bytes_at(source, offset + 30, name.len())? != name {
        return refuse("an entry is not what the directory says");
    }
    Ok(start)
}

fn refuse<T>(why: impl AsRef<str>) -> Result<T> {
    Err(Error::Checkpoint(format!("not a readable .pt archive: {}", why.as_ref())))
}

fn u16_of(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return refuse("its directory is cut");
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16_of(self.take(2)?))
    }

    fn u32(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }
}
