//! What a file is, by its content, and whether it is whole.
//!
//! ffmpeg shows what there is of a cut picture or video without an error; here a file that ends
//! before its own structure says so is refused. Names and extensions are not asked.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::exif;
use crate::pack::Orientation;
use crate::{Error, Result};

/// No sound picture within the limits is longer, compressed or not.
const LARGEST_STILL: u64 = 512 << 20;
/// Boxes or chunks on the top level of a file: a fragment of a second each makes a day.
const MOST_BOXES: usize = 1 << 18;

/// A kind of file that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    Webp,
    /// MP4 and `QuickTime`.
    Mp4,
    /// Matroska and `WebM`.
    Matroska,
    /// AVI.
    Avi,
}

/// What is known of a file before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// What it is.
    pub kind: Kind,
    /// How a picture is to be turned; videos are turned by ffmpeg.
    pub orientation: Orientation,
    /// A picture with more than 8 bits a sample.
    pub deep: bool,
    /// Bytes from the start of the file that are the picture or video; others may follow.
    pub length: u64,
}

impl Inspection {
    fn still(kind: Kind) -> Self {
        Self { kind, orientation: Orientation::UPRIGHT, deep: false, length: 0 }
    }
}

/// Looks at a regular file.
pub fn inspect(file: &File) -> Result<Inspection> {
    let doing = "the file could not be read";
    let metadata = file.metadata().map_err(Error::system(doing))?;
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file; pass a picture or video file"));
    }
    let source = Source { file, length: metadata.len() };
    let mut start = [0; 16];
    let known = source.read_up_to(0, &mut start)?;
    let seen = |kind| Inspection {
        kind,
        orientation: Orientation::UPRIGHT,
        deep: false,
        length: source.length,
    };
    match &start[..known] {
        [] => Err(refuse("it is empty")),
        [0xff, 0xd8, 0xff, ..] => jpeg(&source.still()?),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png(&source.still()?),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(&source.still()?),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => {
            avi(&source).map(|()| seen(Kind::Avi))
        }
        [0x1a, 0x45, 0xdf, 0xa3, ..] => matroska(&source).map(|()| seen(Kind::Matroska)),
        [_, _, _, _, kind @ ..] if MP4_STARTS.iter().any(|start| kind.starts_with(*start)) => {
            mp4(&source).map(|()| seen(Kind::Mp4))
        }
        other => Err(refuse(&format!(
            "it is {}; read are JPEG, PNG and WebP pictures, and MP4, MOV, MKV, WebM and AVI videos",
            describe(other)
        ))),
    }
}

const MP4_STARTS: [&[u8; 4]; 6] = [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"];

fn refuse(finding: &str) -> Error {
    Error::File(finding.into())
}

fn cut(kind: &str) -> Error {
    Error::File(format!(
        "this {kind} file is cut off or damaged: its end is missing; copy it again"
    ))
}

/// For an error message: what the unknown file might be.
fn describe(start: &[u8]) -> &'static str {
    match start {
        [b'G', b'I', b'F', b'8', ..] => "a GIF",
        [b'B', b'M', ..] => "a BMP picture",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF picture",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'F', b'L', b'V', ..] => "a Flash video",
        [b'O', b'g', b'g', b'S', ..] => "an Ogg file",
        [0, 0, 1, 0xb3 | 0xba, ..] | [0x47, ..] => "an MPEG stream",
        [b'#', b'E', b'X', b'T', b'M', b'3', b'U', ..] => "a playlist",
        _ if start.is_ascii() && !start.contains(&0) => "text",
        _ => "of an unknown kind",
    }
}

struct Source<'a> {
    file: &'a File,
    length: u64,
}

impl Source<'_> {
    fn read_up_to(&self, at: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("the file could not be read")(error)),
            }
        }
        Ok(done)
    }

    fn still(&self) -> Result<Vec<u8>> {
        if self.length > LARGEST_STILL {
            return Err(refuse(&format!(
                "its {} bytes are more than any picture within the limits takes",
                self.length
            )));
        }
        let mut bytes = vec![0; self.length as usize];
        let known = self.read_up_to(0, &mut bytes)?;
        bytes.truncate(known);
        Ok(bytes)
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

fn le32(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// Walks the segments, and the coded data between them, to the end-of-image marker.
fn jpeg(bytes: &[u8]) -> Result<Inspection> {
    let mut found = Inspection::still(Kind::Jpeg);
    let mut tables = Tables::default();
    let mut at = 2;
    loop {
        // In coded data FF 00 is a byte and FF D0 to D7 are restarts; the rest ends it.
        while !matches!(bytes.get(at..at + 2), Some([0xff, 1..=0xcf | 0xd8..=0xfe])) {
            if at + 2 > bytes.len() {
                return Err(cut("JPEG"));
            }
            at += 1;
        }
        let marker = bytes[at + 1];
        at += 2;
        match marker {
            0xd9 if tables.are_complete() => {
                found.length = at as u64;
                return Ok(found);
            }
            // Without its tables ffmpeg would show it grey and say nothing.
            0xd9 => return Err(refuse("this JPEG file lacks its tables or its picture")),
            0x01 | 0xd8 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
        let segment = length.and_then(|length| bytes.get(at + 2..at + length));
        let segment = segment.ok_or_else(|| cut("JPEG"))?;
        at += 2 + segment.len();
        match (marker, segment) {
            (0xe1, [b'E', b'x', b'i', b'f', 0, 0, tiff @ ..]) => {
                found.orientation = exif::orientation(tiff);
            }
            (0xdb, segment) => tables.define(segment),
            (0xda, _) => tables.has_scan = true,
            (0xc0..=0xc3, [precision, _, _, _, _, _, components @ ..]) => {
                found.deep = *precision > 8;
                // A lossless picture (C3) needs none.
                tables.need(if marker == 0xc3 { &[] } else { components });
            }
            _ => {}
        }
    }
}

/// The quantisation tables that a JPEG file defines and needs, one bit each.
#[derive(Default)]
struct Tables {
    defined: u16,
    needed: u16,
    has_frame: bool,
    has_scan: bool,
}

impl Tables {
    fn define(&mut self, mut segment: &[u8]) {
        while let [head, rest @ ..] = segment {
            self.defined |= 1 << (head & 15);
            segment = rest.get(if *head < 16 { 64 } else { 128 }..).unwrap_or_default();
        }
    }

    /// `components`: of the frame, three bytes each, the last of which is the table's number.
    fn need(&mut self, components: &[u8]) {
        self.has_frame = true;
        for component in components.chunks_exact(3) {
            self.needed |= 1 << (component[2] & 15);
        }
    }

    fn are_complete(&self) -> bool {
        self.has_frame && self.has_scan && self.needed & !self.defined == 0
    }
}

fn png(bytes: &[u8]) -> Result<Inspection> {
    let mut found = Inspection::still(Kind::Png);
    let mut at = 8;
    loop {
        let length = be32(bytes, at).ok_or_else(|| cut("PNG"))?;
        let end = at + 12 + length;
        let kind = bytes.get(at + 4..at + 8).filter(|_| end <= bytes.len());
        at = end;
        match kind.ok_or_else(|| cut("PNG"))? {
            b"IEND" => break,
            b"eXIf" => found.orientation = exif::orientation(&bytes[end - 4 - length..end - 4]),
            _ => {}
        }
    }
    // The first chunk is IHDR: length, name, width, height, depth.
    found.deep = bytes.get(24).is_some_and(|depth| *depth > 8);
    found.length = at as u64;
    Ok(found)
}

fn webp(bytes: &[u8]) -> Result<Inspection> {
    let mut found = Inspection::still(Kind::Webp);
    let whole = le32(bytes, 4).map(|length| length + 8).filter(|whole| *whole <= bytes.len());
    let bytes = &bytes[..whole.ok_or_else(|| cut("WebP"))?];
    let mut at = 12;
    while at < bytes.len() {
        let length = le32(bytes, at + 4).ok_or_else(|| cut("WebP"))?;
        let body = bytes.get(at + 8..at + 8 + length).ok_or_else(|| cut("WebP"))?;
        match &bytes[at..at + 4] {
            b"ANIM" => {
                return Err(refuse("it is an animated WebP; save one picture of it, or a video"));
            }
            b"EXIF" => {
                found.orientation =
                    exif::orientation(body.strip_prefix(b"Exif\0\0").unwrap_or(body));
            }
            _ => {}
        }
        at += 8 + length + length % 2;
    }
    found.length = bytes.len() as u64;
    Ok(found)
}

fn mp4(source: &Source<'_>) -> Result<()> {
    let mut at = 0;
    let mut has_index = false;
    for _ in 0..MOST_BOXES {
        let mut head = [0; 16];
        let known = source.read_up_to(at, &mut head)?;
        if known == 0 {
            break;
        }
        if known < 8 {
            return Err(cut("MP4"));
        }
        let length = match be32(&head, 0) {
            Some(0) | None => source.length - at,
            Some(1) if known == 16 => u64::from_be_bytes([
                head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
            ]),
            Some(length) => length as u64,
        };
        match &head[4..8] {
            b"moov" => has_index = true,
            b"ftyp" if is_picture_brand(&head[8..12]) => {
                return Err(refuse("it is a HEIF or AVIF picture; save it as PNG or JPEG"));
            }
            _ => {}
        }
        at = at.checked_add(length).filter(|_| length >= 8).ok_or_else(|| cut("MP4"))?;
        if at > source.length {
            return Err(cut("MP4"));
        }
    }
    if has_index {
        return Ok(());
    }
    Err(refuse(
        "this MP4 file has no index (moov): the recording was broken off; repair or re-export it",
    ))
}

fn is_picture_brand(brand: &[u8]) -> bool {
    matches!(brand, b"heic" | b"heix" | b"heim" | b"heis" | b"mif1" | b"msf1" | b"avif" | b"avis")
}

/// Follows the EBML header to the segment, whose length is known unless it was streamed.
fn matroska(source: &Source<'_>) -> Result<()> {
    const SEGMENT: u64 = 0x1853_8067;
    let mut at = 0;
    for _ in 0..16 {
        let mut head = [0; 12];
        let known = source.read_up_to(at, &mut head)?;
        let (id, id_bytes) = vint(&head[..known], false).ok_or_else(|| cut("Matroska"))?;
        let (length, length_bytes) =
            vint(&head[id_bytes..known], true).ok_or_else(|| cut("Matroska"))?;
        let unknown = (1 << (7 * length_bytes)) - 1;
        if id == SEGMENT && length == unknown {
            return Ok(());
        }
        let end = (at + (id_bytes + length_bytes) as u64).checked_add(length);
        at = end.filter(|end| *end <= source.length).ok_or_else(|| cut("Matroska"))?;
        if id == SEGMENT {
            return Ok(());
        }
    }
    Err(cut("Matroska"))
}

/// A number of EBML and its bytes; the leading ones of the first byte say how many those are.
fn vint(bytes: &[u8], strip_marker: bool) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let count = first.leading_zeros() as usize + 1;
    let (bytes, first) = (bytes.get(..count)?, u64::from(first));
    let first = if strip_marker { first & (0x7f >> (count - 1)) } else { first };
    Some((bytes[1..].iter().fold(first, |value, byte| value << 8 | u64::from(*byte)), count))
}

/// Walks the RIFF chunks on the top level: files over 1 GiB have several.
fn avi(source: &Source<'_>) -> Result<()> {
    let mut at = 0;
    while at + 12 <= source.length {
        let mut head = [0; 12];
        source.read_up_to(at, &mut head)?;
        let length = le32(&head, 4).unwrap_or(0) as u64;
        // Zero: streamed, never patched. Foreign chunks may follow the last RIFF.
        if length == 0 || &head[..4] != b"RIFF" {
            return Ok(());
        }
        at += 8 + length + length % 2;
    }
    // The padding byte of the last chunk is often missing.
    if at > source.length + 1 { Err(cut("AVI")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn of(bytes: &[u8]) -> Result<Inspection> {
        let mut file = File::from(memfd_create("media", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        inspect(&file)
    }

    fn finding(bytes: &[u8]) -> String {
        of(bytes).unwrap_err().to_string()
    }

    const STARTS: [&[u8]; 7] = [
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x40\0\0\0WEBP",
        b"RIFF\x40\0\0\0AVI ",
        b"\x1a\x45\xdf\xa3\x82",
        b"\0\0\0\x08ftyp",
    ];

    proptest! {
        #[test]
        fn any_bytes_are_survived(start in 0usize..7, bytes: Vec<u8>) {
            let _ = of(&[STARTS[start], bytes.as_slice()].concat());
        }
    }

    #[test]
    fn other_files_are_called_what_they_are() {
        assert!(finding(b"").contains("empty"));
        assert!(finding(b"ffconcat version 1.0\nfile x").contains("it is text;"));
        assert!(finding(b"#EXTM3U\n").contains("it is a playlist;"));
        assert!(finding(b"GIF89a").contains("it is a GIF;"));
        assert!(finding(&[0; 64]).contains("unknown kind"));
        assert!(finding(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf").contains("HEIF or AVIF"));
    }

    #[test]
    fn a_jpeg_needs_its_end_and_keeps_its_orientation() {
        let tiff = [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"[..]].concat();
        let exif = [b"\xff\xe1", &(8 + tiff.len() as u16).to_be_bytes()[..], b"Exif\0\0", &tiff];
        let coded = b"\xff\xdb\0\x03\x02\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\x01\x11\x02\xff\xda\0\x02\x12\xff\0\xff\xd0\x34\xff\xff\xd9 trailing";
        let whole = [b"\xff\xd8", &exif.concat()[..], coded].concat();
        let end = whole.windows(2).rposition(|pair| pair == b"\xff\xd9").unwrap();
        let found = of(&whole).unwrap();
        assert_eq!((found.orientation.tag(), found.length), (6, end as u64 + 2));
        for length in 3..=end + 1 {
            assert!(of(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn an_mp4_needs_its_index_and_all_its_boxes() {
        let start = b"\0\0\0\x10ftypisom\0\0\0\0";
        let index = b"\0\0\0\x08moov";
        let data = b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x12xx";
        assert!(of(&[&start[..], index, data].concat()).is_ok());
        assert!(of(&[&start[..], data, index].concat()).is_ok());
        assert!(finding(&[&start[..], data].concat()).contains("no index"));
        assert!(finding(&[&start[..], index, &data[..17]].concat()).contains("cut off"));
        assert!(finding(&[&start[..], b"\0\0\0\x07moov"].concat()).contains("cut off"));
    }

    #[test]
    fn a_matroska_file_is_as_long_as_its_segment_says() {
        let start = b"\x1a\x45\xdf\xa3\x82\x42\x86\x18\x53\x80\x67";
        assert!(of(&[&start[..], b"\x83abc"].concat()).is_ok());
        assert!(of(&[&start[..], b"\x83ab"].concat()).is_err());
        assert!(of(&[&start[..], b"\x01\xff\xff\xff\xff\xff\xff\xff"].concat()).is_ok());
    }
}
