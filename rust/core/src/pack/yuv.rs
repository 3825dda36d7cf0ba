//! RGB to YUV 4:2:0, BT.709, limited range, as H.264 files carry it.
//!
//! Half the bytes of RGB go to the encoder, and the matrix is the one that the file is tagged with
//! whatever the version of ffmpeg would have chosen.

use crate::{Error, Result};

const SCALE: f64 = 65_536.0;
const HALF: i32 = 1 << 15;

/// Weights of R, G and B in 1/65536.
struct Weights([i32; 3]);

impl Weights {
    const fn new(red: f64, green: f64, blue: f64) -> Self {
        Self([round(red * SCALE), round(green * SCALE), round(blue * SCALE)])
    }

    fn of(&self, rgb: [i32; 3]) -> i32 {
        self.0[0] * rgb[0] + self.0[1] * rgb[1] + self.0[2] * rgb[2]
    }
}

const fn round(value: f64) -> i32 {
    if value < 0.0 { (value - 0.5) as i32 } else { (value + 0.5) as i32 }
}

const LUMA: f64 = 219.0 / 255.0;
const CHROMA: f64 = 224.0 / 255.0;
const Y: Weights = Weights::new(0.2126 * LUMA, 0.7152 * LUMA, 0.0722 * LUMA);
const U: Weights = Weights::new(-0.2126 / 1.8556 * CHROMA, -0.7152 / 1.8556 * CHROMA, 0.5 * CHROMA);
const V: Weights = Weights::new(0.5 * CHROMA, -0.7152 / 1.5748 * CHROMA, -0.0722 / 1.5748 * CHROMA);

/// Bytes of one frame; both sides must be even.
pub fn yuv420_bytes(height: usize, width: usize) -> Result<usize> {
    if height == 0 || width == 0 || height % 2 == 1 || width % 2 == 1 {
        return Err(Error::argument(format!(
            "frames of {height}x{width} (height x width): 4:2:0 video needs even sides"
        )));
    }
    Ok(height * width / 2 * 3)
}

/// One picture (H, W, 3) into the planes Y (H, W), U and V (H/2, W/2), one after the other.
///
/// Colour samples sit on the even columns between two rows ("left", the place H.264 assumes).
pub fn rgb_to_yuv420(
    source: &[u8],
    target: &mut [u8],
    (height, width): (usize, usize),
) -> Result<()> {
    let bytes = yuv420_bytes(height, width)?;
    if source.len() != height * width * 3 || target.len() != bytes {
        return Err(Error::argument(format!(
            "{} bytes of RGB and {} of YUV for a picture of {height}x{width} (height x width)",
            source.len(),
            target.len()
        )));
    }
    let (luma, chroma) = target.split_at_mut(height * width);
    let (u, v) = chroma.split_at_mut(height * width / 4);
    for (y, pixel) in luma.iter_mut().zip(source.chunks_exact(3)) {
        let rgb = [pixel[0], pixel[1], pixel[2]].map(i32::from);
        *y = ((Y.of(rgb) + (16 << 16) + HALF) >> 16) as u8;
    }
    let mut column_sums = vec![[0i32; 3]; width];
    let rows = u.chunks_exact_mut(width / 2).zip(v.chunks_exact_mut(width / 2));
    for (pair, (u, v)) in source.chunks_exact(width * 6).zip(rows) {
        let (upper, lower) = pair.split_at(width * 3);
        let both = upper.chunks_exact(3).zip(lower.chunks_exact(3));
        for (sum, (above, below)) in column_sums.iter_mut().zip(both) {
            for channel in 0..3 {
                sum[channel] = i32::from(above[channel]) + i32::from(below[channel]);
            }
        }
        let mut before = column_sums[0];
        for ((u, v), columns) in u.iter_mut().zip(v).zip(column_sums.chunks_exact(2)) {
            // One quarter, one half and one quarter of three columns of two rows: eighths.
            let rgb = std::array::from_fn(|c| before[c] + 2 * columns[0][c] + columns[1][c]);
            before = columns[1];
            *u = ((U.of(rgb) + (128 << 19) + (HALF << 3)) >> 19) as u8;
            *v = ((V.of(rgb) + (128 << 19) + (HALF << 3)) >> 19) as u8;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BT.709 as written in the standard, in f64.
    fn twin(source: &[u8], height: usize, width: usize) -> Vec<f64> {
        let at = |y: usize, x: usize| -> [f64; 3] {
            std::array::from_fn(|c| f64::from(source[(y * width + x) * 3 + c]) / 255.0)
        };
        let luma = |[r, g, b]: [f64; 3]| 0.2126 * r + 0.7152 * g + 0.0722 * b;
        let mut planes = [Vec::new(), Vec::new(), Vec::new()];
        for y in 0..height {
            for x in 0..width {
                planes[0].push(16.0 + 219.0 * luma(at(y, x)));
                if y % 2 == 1 || x % 2 == 1 {
                    continue;
                }
                let mut rgb = [0.0; 3];
                for row in [y, y + 1] {
                    for (column, weight) in [(x.saturating_sub(1), 1.0), (x, 2.0), (x + 1, 1.0)] {
                        for (sum, value) in rgb.iter_mut().zip(at(row, column)) {
                            *sum += value * weight / 8.0;
                        }
                    }
                }
                planes[1].push(128.0 + 224.0 * (rgb[2] - luma(rgb)) / 1.8556);
                planes[2].push(128.0 + 224.0 * (rgb[0] - luma(rgb)) / 1.5748);
            }
        }
        planes.concat()
    }

    proptest! {
        #[test]
        fn equals_the_standard_to_the_nearest_level(
            half_height in 1usize..20, half_width in 1usize..20, seed: u32, extreme: bool,
        ) {
            let (height, width) = (half_height * 2, half_width * 2);
            let source: Vec<u8> = (0..height * width * 3)
                .map(|i| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed))
                .map(|hash| if extreme { (hash >> 31) as u8 * 255 } else { (hash >> 23) as u8 })
                .collect();
            let mut target = vec![0; yuv420_bytes(height, width).unwrap()];
            rgb_to_yuv420(&source, &mut target, (height, width)).unwrap();
            for (got, exact) in target.iter().zip(twin(&source, height, width)) {
                prop_assert!((f64::from(*got) - exact).abs() < 0.51, "{got} for {exact}");
            }
        }
    }

    #[test]
    fn primaries_have_the_levels_of_the_standard() {
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let mut target = [0; 6];
            rgb_to_yuv420(&rgb.repeat(4), &mut target, (2, 2)).unwrap();
            assert_eq!([target[0], target[4], target[5]], yuv);
        }
    }

    #[test]
    fn odd_sides_are_refused() {
        for size in [(1, 2), (2, 3), (0, 2)] {
            assert!(yuv420_bytes(size.0, size.1).is_err());
        }
    }
}
