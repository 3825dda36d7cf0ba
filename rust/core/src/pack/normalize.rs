//! u8 HWC pictures to the network's range and layout, and back.

use half::bf16;
use rayon::prelude::*;

use super::{Shape, on_pool};
use crate::Result;

/// Rows that one task converts: enough work to pay for handing it over.
const ROWS: usize = 16;

/// `x / 127.5 - 1` of every byte, in f32.
pub fn f32_table() -> [f32; 256] {
    std::array::from_fn(|byte| byte as f32 / 127.5 - 1.0)
}

/// `x / 127.5 - 1` of every byte as the reference computes it: in bf16, rounded after each
/// operation.
pub fn bf16_table() -> [bf16; 256] {
    std::array::from_fn(|byte| {
        let scaled = bf16::from_f32(byte as f32 / 127.5);
        bf16::from_f32(scaled.to_f32() - 1.0)
    })
}

/// Looks every byte of `source`, (T, H, W, 3), up in `table` and writes (3, T, H, W).
pub fn normalize<T: Copy + Send + Sync>(
    source: &[u8],
    target: &mut [T],
    shape: Shape,
    table: &[T; 256],
) -> Result<()> {
    shape.expect("the source", source.len(), 3)?;
    shape.expect("the target", target.len(), 3)?;
    let plane = shape.pixels()?;
    let band = shape.width * ROWS;
    on_pool(|| {
        let (red, rest) = target.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        (
            source.par_chunks(band * 3),
            red.par_chunks_mut(band),
            green.par_chunks_mut(band),
            blue.par_chunks_mut(band),
        )
            .into_par_iter()
            .for_each(|(pixels, red, green, blue)| {
                let planes = red.iter_mut().zip(green).zip(blue);
                for (pixel, ((red, green), blue)) in pixels.chunks_exact(3).zip(planes) {
                    *red = table[usize::from(pixel[0])];
                    *green = table[usize::from(pixel[1])];
                    *blue = table[usize::from(pixel[2])];
                }
            });
    });
    Ok(())
}

/// Turns (3, T, H, W) values in [-1, 1] into (T, H, W, 3) bytes: `(x + 1) / 2` clamped to [0, 1],
/// times 255, plus one half, truncated. NaN becomes 0.
pub fn denormalize<T: Copy + Send + Sync + Into<f32>>(
    source: &[T],
    target: &mut [u8],
    shape: Shape,
) -> Result<()> {
    shape.expect("the source", source.len(), 3)?;
    shape.expect("the target", target.len(), 3)?;
    let plane = shape.pixels()?;
    let band = shape.width * ROWS;
    on_pool(|| {
        let (red, rest) = source.split_at(plane);
        let (green, blue) = rest.split_at(plane);
        (
            target.par_chunks_mut(band * 3),
            red.par_chunks(band),
            green.par_chunks(band),
            blue.par_chunks(band),
        )
            .into_par_iter()
            .for_each(|(pixels, red, green, blue)| {
                let planes = red.iter().zip(green).zip(blue);
                for (pixel, ((red, green), blue)) in pixels.chunks_exact_mut(3).zip(planes) {
                    pixel[0] = to_byte((*red).into());
                    pixel[1] = to_byte((*green).into());
                    pixel[2] = to_byte((*blue).into());
                }
            });
    });
    Ok(())
}

#[allow(clippy::manual_midpoint, reason = "rounded after each operation, as the reference is")]
fn to_byte(value: f32) -> u8 {
    let unit = ((value + 1.0) / 2.0).clamp(0.0, 1.0);
    (unit * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scalar_normalize(source: &[u8], shape: Shape) -> Vec<f32> {
        let pixels = shape.pixels().unwrap();
        let mut target = vec![f32::NAN; pixels * 3];
        for pixel in 0..pixels {
            for channel in 0..3 {
                let byte = f32::from(source[pixel * 3 + channel]);
                target[channel * pixels + pixel] = byte / 127.5 - 1.0;
            }
        }
        target
    }

    proptest! {
        #[test]
        fn equals_the_scalar_twin_and_comes_back(
            frames in 1usize..4, height in 1usize..40, width in 1usize..130, seed: u8
        ) {
            let shape = Shape { frames, height, width };
            let pixels = shape.pixels().unwrap();
            let source: Vec<u8> =
                (0..pixels * 3).map(|i| (i * 31 + usize::from(seed)) as u8).collect();
            let mut target = vec![f32::NAN; pixels * 3];
            normalize(&source, &mut target, shape, &f32_table()).unwrap();
            prop_assert_eq!(&target, &scalar_normalize(&source, shape));
            let mut back = vec![0; pixels * 3];
            denormalize(&target, &mut back, shape).unwrap();
            prop_assert_eq!(back, source);
        }
    }

    #[test]
    fn every_bf16_becomes_the_byte_that_f32_arithmetic_says() {
        let source: Vec<bf16> =
            (0..=u16::MAX).map(bf16::from_bits).chain([bf16::ZERO; 2]).collect();
        let shape = Shape { frames: 1, height: 1, width: source.len() / 3 };
        let mut target = vec![0; source.len()];
        denormalize(&source, &mut target, shape).unwrap();
        for (index, value) in source.iter().enumerate() {
            let value = f64::from(value.to_f32());
            let expected = if value.is_nan() {
                0
            } else {
                ((value + 1.0) * 127.5 + 0.5).clamp(0.0, 255.0) as u8
            };
            let got = target[index % shape.width * 3 + index / shape.width];
            assert!(got.abs_diff(expected) <= u8::from(value.fract() != 0.0), "{value}: {got}");
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let shape = Shape { frames: 1, height: 2, width: 2 };
        let mut target = [0.0; 12];
        assert!(normalize(&[0; 11], &mut target, shape, &f32_table()).is_err());
        assert!(normalize(&[0; 12], &mut target[..9], shape, &f32_table()).is_err());
    }
}
