//! The stream of pictures that ffmpeg writes: PPM (RGB) and PAM (RGB with alpha), 8 or 16 bit.
//!
//! Each picture says its own size, so neither a probe nor the container's word is needed. Nothing
//! is allocated before the size has passed the caller's bounds.

use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::io::{read, retry_on_intr};

use super::supervisor::Read;
use crate::{Error, Result};

/// Longer headers are no headers: ffmpeg's take fewer than 100 bytes.
const HEADER_BYTES: usize = 256;
/// What is read at a time while a header is awaited. Tiny pictures that come along in one chunk may
/// overfill the queue, by no more than these bytes.
const CHUNK_BYTES: usize = 4096;

/// The largest picture that is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest side in pixels.
    pub side: u32,
    /// Pixels in all.
    pub pixels: u64,
}

/// How a pixel is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    /// 3 for RGB, 4 with straight alpha.
    pub channels: usize,
    /// 1, or 2 with the high byte first.
    pub bytes: usize,
}

/// One picture as ffmpeg gave it.
#[derive(Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// How `data` is to be read.
    pub samples: Samples,
    /// Rows top to bottom, pixels left to right.
    pub data: Vec<u8>,
}

impl Picture {
    /// The picture in 8-bit RGB: 16-bit values to the nearest, transparency on black.
    #[must_use]
    pub fn into_rgb(self) -> Self {
        let Self { height, width, samples, mut data } = self;
        let Samples { channels, bytes } = samples;
        if (channels, bytes) == (3, 1) {
            return Self { height, width, samples, data };
        }
        let stride = channels * bytes;
        for pixel in 0..height * width {
            let value = |channel: usize| {
                let at = pixel * stride + channel * bytes;
                let high = u32::from(data[at]);
                if bytes == 1 { high } else { high << 8 | u32::from(data[at + 1]) }
            };
            let largest: u32 = if bytes == 1 { 255 } else { 65_535 };
            let alpha = if channels == 4 { value(3) } else { largest };
            // Rounded once: color x alpha / largest, on a scale of 255.
            let scale = u64::from(largest) * u64::from(largest);
            let rgb = [0, 1, 2].map(|channel| {
                let product = u64::from(value(channel)) * u64::from(alpha);
                ((product * 255 + scale / 2) / scale) as u8
            });
            data[pixel * 3..pixel * 3 + 3].copy_from_slice(&rgb);
        }
        data.truncate(height * width * 3);
        Self { height, width, samples: Samples { channels: 3, bytes: 1 }, data }
    }
}

/// Turns bytes, however they are cut, into pictures.
pub(super) struct Assembler {
    bounds: Bounds,
    first: Option<Header>,
    header: Vec<u8>,
    body: Option<Picture>,
    seen: u64,
}

impl Assembler {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, first: None, header: Vec::new(), body: None, seen: 0 }
    }

    /// Bytes of one picture; 0 before the first.
    pub fn picture_bytes(&self) -> usize {
        self.first.map_or(0, Header::body_bytes)
    }

    /// Reads once; `emit` gets each picture that became complete, `memory` may lend buffers.
    pub fn read(
        &mut self,
        from: BorrowedFd<'_>,
        memory: &mut dyn FnMut() -> Option<Vec<u8>>,
        emit: &mut dyn FnMut(Picture),
    ) -> Result<Read> {
        let Some(body) = &mut self.body else {
            let mut chunk = [0; CHUNK_BYTES];
            let count = retry_on_intr(|| read(from, &mut chunk));
            self.push(&chunk[..count.unwrap_or(0)], memory, emit)?;
            return Read::from_result(count);
        };
        // Straight into its place: the capacity beyond the length is exactly what is missing.
        let heard =
            Read::from_result(retry_on_intr(|| read(from, spare_capacity(&mut body.data))))?;
        self.emit_if_complete(emit);
        Ok(heard)
    }

    fn push(
        &mut self,
        mut bytes: &[u8],
        memory: &mut dyn FnMut() -> Option<Vec<u8>>,
        emit: &mut dyn FnMut(Picture),
    ) -> Result<()> {
        while !bytes.is_empty() {
            if let Some(body) = &mut self.body {
                let missing = self.first.map_or(0, Header::body_bytes) - body.data.len();
                let (now, later) = bytes.split_at(missing.min(bytes.len()));
                body.data.extend_from_slice(now);
                bytes = later;
                self.emit_if_complete(emit);
                continue;
            }
            let known = self.header.len();
            self.header.extend_from_slice(&bytes[..bytes.len().min(HEADER_BYTES - known)]);
            let Some((header, length)) = parse(&self.header)? else {
                if self.header.len() == HEADER_BYTES {
                    return Err(not_a_picture());
                }
                return Ok(());
            };
            self.accept(header, memory)?;
            bytes = &bytes[length - known..];
            self.header.clear();
        }
        Ok(())
    }

    fn accept(
        &mut self,
        header: Header,
        memory: &mut dyn FnMut() -> Option<Vec<u8>>,
    ) -> Result<()> {
        let Header { height, width, samples } = header;
        let Bounds { side, pixels } = self.bounds;
        // No overflow: both sides have passed the first test when the product is taken.
        if height.max(width) > side as usize || (height * width) as u64 > pixels {
            return Err(Error::Stream(format!(
                "pictures of {height}x{width} (height x width) are beyond the limit of {side} \
                 pixels a side and {pixels} in all"
            )));
        }
        let first = *self.first.get_or_insert(header);
        if first != header {
            return Err(Error::Stream(format!(
                "the size changes from {}x{} to {height}x{width} (height x width) at picture {}; \
                 cut the video where it changes",
                first.height, first.width, self.seen
            )));
        }
        let mut data = memory().unwrap_or_default();
        data.clear();
        data.try_reserve_exact(header.body_bytes()).map_err(|_| {
            Error::Stream(format!("no memory for a picture of {height}x{width} (height x width)"))
        })?;
        data.shrink_to(header.body_bytes());
        self.body = Some(Picture { height, width, samples, data });
        Ok(())
    }

    fn emit_if_complete(&mut self, emit: &mut dyn FnMut(Picture)) {
        let expected = self.picture_bytes();
        if let Some(picture) = self.body.take_if(|body| body.data.len() >= expected) {
            self.seen += 1;
            emit(picture);
        }
    }

    /// The stream has ended: an error inside a picture.
    pub fn end(&self) -> Result<()> {
        if self.body.is_none() && self.header.is_empty() {
            return Ok(());
        }
        Err(Error::Stream(format!("ffmpeg's output ends inside picture {}", self.seen)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    height: usize,
    width: usize,
    samples: Samples,
}

impl Header {
    fn body_bytes(self) -> usize {
        self.height * self.width * self.samples.channels * self.samples.bytes
    }
}

fn not_a_picture() -> Error {
    Error::Stream("ffmpeg's output is not a stream of PPM or PAM pictures".into())
}

/// The header at the start of `bytes` and its length; `None` where it is not complete yet.
fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>> {
    match bytes {
        [b'P', b'6', ..] => parse_ppm(bytes),
        [b'P', b'7', ..] => parse_pam(bytes),
        [] | [b'P'] => Ok(None),
        _ => Err(not_a_picture()),
    }
}

/// `P6`, width, height and largest value, each followed by one white space.
fn parse_ppm(bytes: &[u8]) -> Result<Option<(Header, usize)>> {
    let mut ends = bytes.iter().enumerate().filter(|(_, byte)| byte.is_ascii_whitespace());
    let ends: Vec<usize> = ends.by_ref().take(4).map(|(at, _)| at).collect();
    let &[magic, width, height, largest] = ends.as_slice() else {
        return Ok(None);
    };
    if magic != 2 {
        return Err(not_a_picture());
    }
    let samples = Samples { channels: 3, bytes: sample_bytes(&bytes[height + 1..largest])? };
    let header = Header {
        width: side(&bytes[magic + 1..width])?,
        height: side(&bytes[width + 1..height])?,
        samples,
    };
    Ok(Some((header, largest + 1)))
}

/// `P7` and lines of a name and a value, up to `ENDHDR`.
fn parse_pam(bytes: &[u8]) -> Result<Option<(Header, usize)>> {
    const END: &[u8] = b"\nENDHDR\n";
    let Some(end) = bytes.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let field = |name: &[u8]| {
        bytes[..end]
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(b" "))
            .ok_or_else(not_a_picture)
    };
    let channels = match (field(b"DEPTH")?, field(b"TUPLTYPE")?) {
        (b"3", b"RGB") => 3,
        (b"4", b"RGB_ALPHA") => 4,
        _ => return Err(not_a_picture()),
    };
    let samples = Samples { channels, bytes: sample_bytes(field(b"MAXVAL")?)? };
    let header =
        Header { height: side(field(b"HEIGHT")?)?, width: side(field(b"WIDTH")?)?, samples };
    Ok(Some((header, end + END.len())))
}

fn sample_bytes(largest: &[u8]) -> Result<usize> {
    match largest {
        b"255" => Ok(1),
        b"65535" => Ok(2),
        _ => Err(not_a_picture()),
    }
}

/// At most nine digits: no product of two overflows.
fn side(digits: &[u8]) -> Result<usize> {
    let number = str::from_utf8(digits).ok().filter(|text| text.len() <= 9);
    let number = number.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.and_then(|text| text.parse().ok()).filter(|&n| n > 0).ok_or_else(not_a_picture)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { side: 64, pixels: 1000 };

    fn assemble<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Picture>> {
        let mut assembler = Assembler::new(BOUNDS);
        let mut pictures = Vec::new();
        for chunk in chunks {
            assembler.push(chunk, &mut || Some(vec![7; 3000]), &mut |done| pictures.push(done))?;
        }
        assembler.end().map(|()| pictures)
    }

    fn stream(count: usize, height: usize, width: usize, alpha: bool, deep: bool) -> Vec<u8> {
        let (channels, largest) = (3 + usize::from(alpha), if deep { 65_535 } else { 255 });
        let mut bytes = Vec::new();
        for picture in 0..count {
            let header = if alpha {
                format!(
                    "P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 4\nMAXVAL {largest}\n\
                     TUPLTYPE RGB_ALPHA\nENDHDR\n"
                )
            } else {
                format!("P6\n{width} {height}\n{largest}\n")
            };
            bytes.extend(header.bytes());
            let body = height * width * channels * (1 + usize::from(deep));
            bytes.extend((0..body).map(|i| (i + picture) as u8));
        }
        bytes
    }

    proptest! {
        #[test]
        fn pictures_are_the_same_however_the_stream_is_cut(
            count in 0usize..5, height in 1usize..9, width in 1usize..60,
            alpha: bool, deep: bool, cut in 1usize..300,
        ) {
            let bytes = stream(count, height, width, alpha, deep);
            let whole = assemble([bytes.as_slice()]).unwrap();
            prop_assert_eq!(whole.len(), count);
            prop_assert_eq!(assemble(bytes.chunks(cut)).unwrap(), whole);
        }

        #[test]
        fn a_cut_stream_is_an_error(count in 1usize..4, cut in 1usize..100) {
            let bytes = stream(count, 7, 11, false, false);
            prop_assert!(assemble([&bytes[..bytes.len() - cut]]).is_err());
        }

        #[test]
        fn nonsense_is_refused_without_panic(bytes: Vec<u8>, start in 0usize..3) {
            let start = [&b""[..], b"P6\n3 2\n255\n", b"P7\nWIDTH 3\nHEIGHT 2\n"][start];
            let _ = assemble([start, bytes.as_slice()]);
        }
    }

    #[test]
    fn headers_beyond_the_bounds_allocate_nothing() {
        for (width, height) in [(65, 1), (1, 65), (33, 33), (999_999_999, 999_999_999)] {
            let header = format!("P6\n{width} {height}\n255\n");
            assert!(matches!(assemble([header.as_bytes()]), Err(Error::Stream(text))
                if text.contains("beyond the limit")));
        }
    }

    #[test]
    fn odd_headers_are_refused() {
        for header in [
            "P5\n1 1\n255\n",
            "P6 \n1 1\n255\n",
            "P6\n0 1\n255\n",
            "P6\n-1 1\n255\n",
            "P6\n+1 1\n255\n",
            "P6\n1 1\n254\n",
            "P6\n9999999999 1\n255\n",
            "P6\n1\n\n255\n",
            "P7\nWIDTH 1\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
            "P7\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
        ] {
            assert!(assemble([header.as_bytes()]).is_err(), "{header:?}");
        }
        assert!(assemble([[b"P7\n".as_slice(), &[b'x'; 300]].concat().as_slice()]).is_err());
    }

    #[test]
    fn a_change_of_size_is_an_error() {
        let bytes = [stream(2, 4, 6, false, false), stream(1, 6, 4, false, false)].concat();
        assert!(matches!(assemble([bytes.as_slice()]), Err(Error::Stream(text))
            if text.contains("from 4x6 to 6x4") && text.contains("picture 2")));
    }

    #[test]
    fn deep_and_transparent_pixels_become_rgb_on_black() {
        let pixel = |channels, bytes, data: &[u8]| {
            let samples = Samples { channels, bytes };
            Picture { height: 1, width: 1, samples, data: data.to_vec() }.into_rgb().data
        };
        assert_eq!(pixel(3, 1, &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(pixel(4, 1, &[255, 128, 7, 255]), [255, 128, 7]);
        assert_eq!(pixel(4, 1, &[255, 128, 7, 0]), [0, 0, 0]);
        assert_eq!(pixel(4, 1, &[255, 100, 3, 128]), [128, 50, 2]);
        assert_eq!(pixel(3, 2, &[0xff, 0xff, 0x80, 0x80, 0, 0x80]), [255, 128, 0]);
        assert_eq!(pixel(3, 2, &[0, 0x81, 1, 0, 0, 0x80]), [1, 1, 0]);
        assert_eq!(pixel(4, 2, &[0xff, 0xff, 0, 0, 0, 0, 0x80, 0x80]), [128, 0, 0]);
    }
}
