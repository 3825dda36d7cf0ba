//! Pictures turned and mirrored as their camera's orientation tag says.

use rayon::prelude::*;

use super::{Shape, on_pool};
use crate::{Error, Result};

/// EXIF orientation, 1 to 8: how stored rows and columns are to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    /// As stored.
    pub const UPRIGHT: Self = Self(1);

    /// The orientation that EXIF calls `tag`.
    pub fn new(tag: u8) -> Result<Self> {
        if (1..=8).contains(&tag) {
            return Ok(Self(tag));
        }
        Err(Error::argument(format!("orientation {tag}: EXIF knows 1 to 8")))
    }

    /// The number that EXIF gives it.
    pub fn tag(self) -> u8 {
        self.0
    }

    /// Whether rows become columns.
    pub fn transposes(self) -> bool {
        self.0 >= 5
    }

    /// Where the pixel shown at row `y`, column `x` is stored in a picture of that height and width.
    fn stored(self, (y, x): (usize, usize), height: usize, width: usize) -> (usize, usize) {
        match self.0 {
            2 => (y, width - 1 - x),
            3 => (height - 1 - y, width - 1 - x),
            4 => (height - 1 - y, x),
            5 => (x, y),
            6 => (height - 1 - x, y),
            7 => (height - 1 - x, width - 1 - y),
            8 => (x, width - 1 - y),
            _ => (y, x),
        }
    }
}

/// The picture `source`, (H, W, 3), as it is to be shown, and its height and width.
pub fn orient(
    source: Vec<u8>,
    (height, width): (usize, usize),
    orientation: Orientation,
) -> Result<(Vec<u8>, usize, usize)> {
    Shape { frames: 1, height, width }.expect("the picture", source.len(), 3)?;
    if orientation == Orientation::UPRIGHT {
        return Ok((source, height, width));
    }
    let (rows, columns) = if orientation.transposes() { (width, height) } else { (height, width) };
    let mut shown = vec![0; source.len()];
    on_pool(|| {
        shown.par_chunks_exact_mut(columns * 3).enumerate().for_each(|(y, row)| {
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let (from_y, from_x) = orientation.stored((y, x), height, width);
                let at = (from_y * width + from_x) * 3;
                pixel.copy_from_slice(&source[at..at + 3]);
            }
        });
    });
    Ok((shown, rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_shows_the_letter_f_upright() {
        // F stored as each tag describes: row and column 0 of the stored picture are on the named
        // sides of the shown one.
        let stored: [(u8, &str, usize); 8] = [
            (1, "XXX X.. XX. X..", 3),
            (2, "XXX ..X .XX ..X", 3),
            (3, "..X .XX ..X XXX", 3),
            (4, "X.. XX. X.. XXX", 3),
            (5, "XXXX X.X. X...", 4),
            (6, "X... X.X. XXXX", 4),
            (7, "...X .X.X XXXX", 4),
            (8, "XXXX .X.X ...X", 4),
        ];
        for (tag, letters, width) in stored {
            let letters: Vec<u8> =
                letters.bytes().filter(|b| *b != b' ').flat_map(|b| [b; 3]).collect();
            let height = letters.len() / 3 / width;
            let (shown, rows, columns) =
                orient(letters, (height, width), Orientation::new(tag).unwrap()).unwrap();
            assert_eq!((rows, columns), (4, 3), "{tag}");
            let text: String = shown.chunks(3).map(|pixel| char::from(pixel[0])).collect();
            assert_eq!(text, "XXXX..XX.X..", "{tag}");
        }
    }

    #[test]
    fn other_tags_and_lengths_are_refused() {
        assert!(Orientation::new(0).is_err() && Orientation::new(9).is_err());
        assert!(orient(vec![0; 5], (1, 2), Orientation::UPRIGHT).is_err());
    }
}
