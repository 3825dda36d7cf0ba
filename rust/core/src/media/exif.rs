//! The orientation tag of EXIF data, and nothing else of it.

use crate::pack::Orientation;

const ORIENTATION: u16 = 0x0112;
const SHORT: u16 = 3;

/// The orientation in a TIFF block, upright where there is none or it makes no sense: a broken
/// remark is no reason to refuse a sound picture.
pub(super) fn orientation(tiff: &[u8]) -> Orientation {
    find(tiff).and_then(|tag| Orientation::new(tag).ok()).unwrap_or(Orientation::UPRIGHT)
}

fn find(tiff: &[u8]) -> Option<u8> {
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let long = |at: usize| -> Option<usize> {
        let bytes = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) } as usize)
    };
    if short(2)? != 42 {
        return None;
    }
    let directory = long(4)?;
    let entries = usize::from(short(directory)?);
    let entry = (0..entries)
        .map(|index| directory + 2 + index * 12)
        .find(|&entry| short(entry) == Some(ORIENTATION))?;
    if short(entry + 2)? != SHORT || long(entry + 4)? != 1 {
        return None;
    }
    u8::try_from(short(entry + 8)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tiff(little: bool, tag: u16) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut bytes = if little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend(short(42));
        bytes.extend(long(8));
        bytes.extend(short(2));
        bytes.extend([short(0x010f), short(2)].concat());
        bytes.extend([long(1), long(0)].concat());
        bytes.extend([short(ORIENTATION), short(SHORT)].concat());
        bytes.extend(long(1));
        bytes.extend([short(tag), short(0)].concat());
        bytes
    }

    #[test]
    fn both_byte_orders_are_read() {
        for little in [true, false] {
            for tag in 1..=8 {
                assert_eq!(orientation(&tiff(little, tag)).tag(), tag as u8);
            }
            for tag in [0, 9, 300, 65535] {
                assert_eq!(orientation(&tiff(little, tag)), Orientation::UPRIGHT);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0usize..32, value: u8, little: bool) {
            orientation(&bytes);
            let mut broken = tiff(little, 6);
            if let Some(byte) = broken.get_mut(at) {
                *byte = value;
            }
            orientation(&broken);
            broken.truncate(at);
            prop_assert_eq!(orientation(&broken), Orientation::UPRIGHT);
        }
    }
}
