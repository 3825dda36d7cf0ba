//! Antialiased resizing that equals PyTorch's, down to the order of its f32 operations.
//!
//! The reference resizes float pictures in [0, 1] with torchvision (bilinear, antialiased), crops
//! and truncates to bytes. Truncation turns a difference in the last bit into a whole level on flat
//! areas, so the filter here follows `aten/src/ATen/native/cpu/UpSampleKernel.cpp`: f32 weights,
//! columns first, then rows, each sum in order.

use rayon::prelude::*;

use super::{Shape, on_pool};
use crate::{Error, Result};

/// How a picture is brought to another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Scaled until it covers the size (bilinear), then cut at the centre.
    Cover,
    /// Scaled straight to the size (bicubic); its aspect is not kept.
    Stretch,
}

#[derive(Clone, Copy)]
enum Filter {
    Triangle,
    Cubic,
}

impl Filter {
    fn taps(self) -> f32 {
        match self {
            Self::Triangle => 2.0,
            Self::Cubic => 4.0,
        }
    }

    /// Fused where the compiler of PyTorch's kernels fuses.
    fn at(self, x: f32) -> f32 {
        const A: f32 = -0.5;
        let x = x.abs();
        match self {
            Self::Triangle if x < 1.0 => 1.0 - x,
            Self::Cubic if x < 1.0 => ((A + 2.0).mul_add(x, -(A + 3.0)) * x).mul_add(x, 1.0),
            Self::Cubic if x < 2.0 => {
                A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
            }
            _ => 0.0,
        }
    }
}

/// What one axis does: for each kept output position, its first input and the weights from there.
struct Axis {
    windows: Vec<(usize, Vec<f32>)>,
}

impl Axis {
    /// `output` positions over `input`, of which `keep` from `skip` on are wanted.
    fn new(filter: Filter, input: usize, output: usize, skip: usize, keep: usize) -> Self {
        // f32 and f64 alternate as they do where C++ adds a double literal to a float.
        let scale = input as f32 / output as f32;
        let half = filter.taps() * 0.5;
        let (support, inverse) =
            if scale >= 1.0 { (half * scale, 1.0 / scale) } else { (half, 1.0) };
        let window = |index: usize| {
            let center = (f64::from(scale) * (index as f64 + 0.5)) as f32;
            let start = ((f64::from(center - support) + 0.5) as i64).max(0);
            let end = ((f64::from(center + support) + 0.5) as i64).min(input as i64);
            let mut total = 0.0;
            let mut weights: Vec<f32> = (start..end)
                .map(|at| {
                    let offset = f64::from(at as f32 - center) + 0.5;
                    let weight = filter.at((offset * f64::from(inverse)) as f32);
                    total += weight;
                    weight
                })
                .collect();
            if total != 0.0 {
                for weight in &mut weights {
                    *weight /= total;
                }
            }
            (start as usize, weights)
        };
        Self { windows: (skip..skip + keep).map(window).collect() }
    }

    /// The inputs that any window touches.
    fn span(&self) -> std::ops::Range<usize> {
        let start = self.windows.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let end = self.windows.iter().map(|(start, weights)| start + weights.len()).max();
        start..end.unwrap_or(start)
    }
}

/// An [`Axis`] for whoever does the sums elsewhere: one row of weights for each output position.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// The first input of each.
    pub starts: Vec<u32>,
    /// How many terms of each sum, from the first on, are rounded twice, after the product and
    /// after the sum; the product of a later one is not rounded.
    pub unfused: Vec<u32>,
    /// Of all, one after the other; shorter windows end in zeros.
    pub weights: Vec<f32>,
}

impl From<Axis> for Windows {
    fn from(Axis { windows }: Axis) -> Self {
        let taps = windows.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let padding = |(_, weights): &(usize, Vec<f32>)| vec![0.0; taps - weights.len()];
        Self {
            starts: windows.iter().map(|(start, _)| *start as u32).collect(),
            unfused: windows.iter().map(|(_, weights)| unfused(weights.len()) as u32).collect(),
            weights: windows
                .iter()
                .flat_map(|one| [one.1.clone(), padding(one)].concat())
                .collect(),
        }
    }
}

/// What [`fit`] sums, of the columns and of the rows, which come after them.
///
/// The sums start at zero; then they are cut to [0, 1], times 255, and truncated.
pub fn windows(
    (from_height, from_width): (usize, usize),
    (height, width): (usize, usize),
    how: Fit,
) -> Result<(Windows, Windows)> {
    let shape = Shape { frames: 1, height: from_height, width: from_width };
    let fitted = Shape { height, width, ..shape };
    expect_sides(shape, fitted)?;
    let (columns, rows) = axes(shape, height, width, how);
    Ok((columns.into(), rows.into()))
}

/// Fits each picture of `source`, (T, h, w, 3), into (T, `height`, `width`, 3).
pub fn fit(
    source: &[u8],
    shape: Shape,
    target: &mut [u8],
    (height, width): (usize, usize),
    how: Fit,
) -> Result<()> {
    let fitted = Shape { height, width, ..shape };
    shape.expect("the source", source.len(), 3)?;
    fitted.expect("the target", target.len(), 3)?;
    expect_sides(shape, fitted)?;
    let (columns, rows) = axes(shape, height, width, how);
    let pictures = source.chunks_exact(shape.height * shape.width * 3);
    on_pool(|| {
        for (picture, target) in pictures.zip(target.chunks_exact_mut(height * width * 3)) {
            resize(picture, shape.width, target, width, &columns, &rows);
        }
    });
    Ok(())
}

fn expect_sides(shape: Shape, fitted: Shape) -> Result<()> {
    shape.pixels()?;
    fitted.pixels()?;
    let largest = shape.height.max(shape.width).max(fitted.height).max(fitted.width);
    if largest > 1 << 20 {
        return Err(Error::argument(format!("a side of {largest} pixels: at most 1048576")));
    }
    Ok(())
}

fn axes(shape: Shape, height: usize, width: usize, how: Fit) -> (Axis, Axis) {
    let (from_height, from_width) = (shape.height as f64, shape.width as f64);
    match how {
        Fit::Stretch => (
            Axis::new(Filter::Cubic, shape.width, width, 0, width),
            Axis::new(Filter::Cubic, shape.height, height, 0, height),
        ),
        Fit::Cover => {
            let scale = (width as f64 / from_width).max(height as f64 / from_height);
            let covering_height = (scale * from_height).ceil() as usize;
            let covering_width = (scale * from_width).ceil() as usize;
            let left = centre(covering_width, width);
            let top = centre(covering_height, height);
            (
                Axis::new(Filter::Triangle, shape.width, covering_width, left, width),
                Axis::new(Filter::Triangle, shape.height, covering_height, top, height),
            )
        }
    }
}

/// Where a centre crop starts: half of what is left over, a half rounded to even, as Python does.
fn centre(whole: usize, part: usize) -> usize {
    ((whole - part) as f64 / 2.0).round_ties_even() as usize
}

fn resize(
    picture: &[u8],
    from_width: usize,
    target: &mut [u8],
    width: usize,
    columns: &Axis,
    rows: &Axis,
) {
    let span = rows.span();
    let mut narrow = vec![0.0f32; span.len() * width * 3];
    narrow.par_chunks_exact_mut(width * 3).zip(span.clone()).for_each_init(
        || vec![0.0f32; from_width * 3 + 1],
        |unit, (narrow, y)| {
            let wide = &picture[y * from_width * 3..(y + 1) * from_width * 3];
            for (value, byte) in unit.iter_mut().zip(wide) {
                *value = f32::from(*byte) / 255.0;
            }
            with_fma(|| resize_row(unit, narrow, columns));
        },
    );
    target.par_chunks_exact_mut(width * 3).zip(&rows.windows).for_each_init(
        || vec![0.0f32; width * 3],
        |sums, (target, (start, weights))| {
            let first = (start - span.start) * width * 3;
            with_fma(|| add_rows(&narrow[first..], weights, sums));
            for (byte, sum) in target.iter_mut().zip(&*sums) {
                *byte = (sum.clamp(0.0, 1.0) * 255.0) as u8;
            }
        },
    );
}

/// How many of a window's terms are multiplied and added with two roundings; the rest, three at
/// most, are fused. So does the compiler of PyTorch's kernels for processors with AVX2: after the
/// first term it takes four products at a time and fuses what is left over.
fn unfused(taps: usize) -> usize {
    1 + (taps - 1) / 4 * 4
}

/// One row of pixels, `unit` in [0, 1] with one value to spare, to the columns of `narrow`.
#[inline]
fn resize_row(unit: &[f32], narrow: &mut [f32], columns: &Axis) {
    for (pixel, (start, weights)) in narrow.chunks_exact_mut(3).zip(&columns.windows) {
        let (plain, fused) = weights.split_at(unfused(weights.len()));
        // Four lanes fill a register; the fourth is the neighbour's red and is dropped.
        let mut sums = [0.0f32; 4];
        let mut at = start * 3;
        for weight in plain {
            for (sum, value) in sums.iter_mut().zip(&unit[at..at + 4]) {
                *sum += value * weight;
            }
            at += 3;
        }
        for weight in fused {
            for (sum, value) in sums.iter_mut().zip(&unit[at..at + 4]) {
                *sum = value.mul_add(*weight, *sum);
            }
            at += 3;
        }
        pixel.copy_from_slice(&sums[..3]);
    }
}

/// The sum of `rows`, each times its weight.
#[inline]
fn add_rows(rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    let mut rows = rows.chunks_exact(sums.len());
    let (plain, fused) = weights.split_at(unfused(weights.len()));
    for (weight, row) in plain.iter().zip(rows.by_ref()) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value * weight;
        }
    }
    for (weight, row) in fused.iter().zip(rows) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum = value.mul_add(*weight, *sum);
        }
    }
}

/// Runs `work` compiled for processors with AVX2 and fused multiply-add where this is one; without
/// the instruction the result is the same, only slower.
#[inline]
fn with_fma(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn compiled_for_avx2(work: impl FnOnce()) {
            work();
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both features.
            unsafe { compiled_for_avx2(work) };
            return;
        }
    }
    work();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, pixel by pixel, in f64.
    fn twin(source: &[u8], shape: Shape, height: usize, width: usize, how: Fit) -> Vec<f64> {
        let (columns, rows) = axes(shape, height, width, how);
        let mut target = Vec::new();
        for (top, down) in &rows.windows {
            for (left, across) in &columns.windows {
                for channel in 0..3 {
                    let mut sum = 0.0;
                    for (y, weight_y) in down.iter().enumerate() {
                        for (x, weight_x) in across.iter().enumerate() {
                            let at = ((top + y) * shape.width + left + x) * 3 + channel;
                            let weight = f64::from(*weight_y) * f64::from(*weight_x);
                            sum += weight * f64::from(source[at]);
                        }
                    }
                    target.push(sum.clamp(0.0, 255.0));
                }
            }
        }
        target
    }

    proptest! {
        #[test]
        fn equals_the_scalar_twin_but_for_roundings(
            (h, w) in (1usize..60, 1usize..60), (height, width) in (1usize..40, 1usize..40),
            stretch: bool, seed: u32,
        ) {
            let shape = Shape { frames: 1, height: h, width: w };
            let source: Vec<u8> = (0..h * w * 3)
                .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 23) as u8)
                .collect();
            let how = if stretch { Fit::Stretch } else { Fit::Cover };
            let mut target = vec![0; height * width * 3];
            fit(&source, shape, &mut target, (height, width), how).unwrap();
            for (got, exact) in target.iter().zip(twin(&source, shape, height, width, how)) {
                // Truncated: the exact value lies in [got, got + 1), give or take a rounding.
                let above = exact - f64::from(*got);
                prop_assert!((-0.01..1.01).contains(&above), "{got} for {exact}");
            }
        }

        #[test]
        fn weights_sum_to_one_and_stay_inside(
            input in 1usize..3000, output in 1usize..3000, cubic: bool
        ) {
            let filter = if cubic { Filter::Cubic } else { Filter::Triangle };
            for (start, weights) in Axis::new(filter, input, output, 0, output).windows {
                prop_assert!(!weights.is_empty() && start + weights.len() <= input);
                prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let shape = Shape { frames: 2, height: 8, width: 32 };
        let source: Vec<u8> = (0..2 * 8 * 32 * 3).map(|i| (i * 7) as u8).collect();
        for how in [Fit::Cover, Fit::Stretch] {
            let mut target = vec![0; source.len()];
            fit(&source, shape, &mut target, (8, 32), how).unwrap();
            assert_eq!(target, source);
        }
    }

    #[test]
    fn a_crop_starts_where_python_rounds() {
        assert_eq!([(5, 4), (7, 4), (9, 4), (4, 4)].map(|(a, b)| centre(a, b)), [0, 2, 2, 0]);
    }
}
