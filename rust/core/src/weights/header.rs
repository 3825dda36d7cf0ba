//! The header of a safetensors file, checked as the official crate checks it.
//!
//! Eight bytes of length, little-endian, then JSON of that length, then the tensors' bytes, every
//! one of them in exactly one tensor.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::source::{Source, bytes_at};
use crate::{Error, Result};

/// Bytes of JSON beyond which a header is refused, as in the official crate.
const LONGEST_HEADER: u64 = 100_000_000;
/// More tensors than any model has.
const MOST_TENSORS: usize = 1 << 18;
const MOST_AXES: usize = 32;
const METADATA: &str = "__metadata__";

/// A dtype's name in the file and its bits.
const DTYPES: [(&str, u64); 20] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dtype, as the file calls it.
    pub dtype: &'static str,
    /// Its axes.
    pub shape: Vec<u64>,
    /// Its first byte, from the start of the file.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// In the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// Free text.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header.
pub fn read_header(source: &(impl Source + ?Sized)) -> Result<Header> {
    let file = source.length()?;
    if file < 8 {
        return Err(Error::Checkpoint(format!("{file} bytes are too few for a safetensors file")));
    }
    let mut prefix = [0; 8];
    source.fill(0, &mut prefix)?;
    let length = u64::from_le_bytes(prefix);
    if length > LONGEST_HEADER || length > file - 8 {
        return Err(Error::Checkpoint(format!(
            "a header of {length} bytes in a file of {file}: it is no safetensors file, or cut"
        )));
    }
    let json = bytes_at(source, 8, length as usize)?;
    if json.first() != Some(&b'{') {
        return Err(Error::checkpoint(
            "the header does not start with a brace: no safetensors file",
        ));
    }
    let parsed: Parsed = serde_json::from_slice(&json)
        .map_err(|error| Error::Checkpoint(format!("the header is not readable: {error}")))?;
    drop(json);
    placed(parsed, 8 + length, file)
}

/// Checks that the tensors fill the file, one behind the other.
fn placed(mut parsed: Parsed, data: u64, file: u64) -> Result<Header> {
    parsed.tensors.sort_by_key(|tensor| (tensor.start, tensor.end));
    let mut expected = 0;
    for tensor in &mut parsed.tensors {
        let TensorInfo { name, start, end, .. } = &*tensor;
        if *start != expected || end < start {
            return Err(Error::Checkpoint(format!(
                "{name:?} has bytes {start} to {end}; {expected} is where it should start"
            )));
        }
        let bytes = size(tensor).ok_or_else(|| {
            Error::Checkpoint(format!("{:?} has a shape of no whole number of bytes", tensor.name))
        })?;
        if tensor.end - tensor.start != bytes {
            return Err(Error::Checkpoint(format!(
                "{:?} has {} bytes; {} of shape {:?} needs {bytes}",
                tensor.name,
                tensor.end - tensor.start,
                tensor.dtype,
                tensor.shape
            )));
        }
        expected = tensor.end;
    }
    if data.checked_add(expected) != Some(file) {
        return Err(Error::Checkpoint(format!(
            "the file has {file} bytes, its header describes {data} + {expected}: cut or damaged"
        )));
    }
    for tensor in &mut parsed.tensors {
        tensor.start += data;
        tensor.end += data;
    }
    Ok(Header { tensors: parsed.tensors, metadata: parsed.metadata })
}

fn size(tensor: &TensorInfo) -> Option<u64> {
    let bits = DTYPES.iter().find(|(name, _)| *name == tensor.dtype)?.1;
    let values = tensor.shape.iter().try_fold(1_u64, |values, axis| values.checked_mul(*axis))?;
    let bits = values.checked_mul(bits)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The JSON, before offsets are checked; keys that are there twice are refused.
#[derive(Default)]
struct Parsed {
    tensors: Vec<TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl<'de> serde::Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Tensors)
    }
}

struct Tensors;

impl<'de> Visitor<'de> for Tensors {
    type Value = Parsed;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Parsed, A::Error> {
        let mut parsed = Parsed::default();
        let mut names = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if parsed.tensors.len() >= MOST_TENSORS {
                return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name:?} is there twice")));
            }
            if name == METADATA {
                parsed.metadata = map.next_value::<Metadata>()?.0;
                continue;
            }
            let Info { dtype, shape, data_offsets: (start, end) } = map.next_value()?;
            parsed.tensors.push(TensorInfo { name, dtype, shape, start, end });
        }
        Ok(parsed)
    }
}

struct Metadata(BTreeMap<String, String>);

impl<'de> serde::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Texts)
    }
}

struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Metadata;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("texts by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Metadata, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some((name, text)) = map.next_entry::<String, String>()? {
            if texts.insert(name, text).is_some() {
                return Err(A::Error::custom("a metadata key is there twice"));
            }
        }
        Ok(Metadata(texts))
    }
}

struct Info {
    dtype: &'static str,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> serde::Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Info;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a tensor's dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Info, A::Error> {
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(field) = map.next_key::<String>()? {
            let twice = match field.as_str() {
                "dtype" => dtype.replace(known_dtype(&map.next_value::<String>()?)?).is_some(),
                "shape" => shape.replace(map.next_value::<Axes>()?.0).is_some(),
                "data_offsets" => data_offsets.replace(map.next_value()?).is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom(format!("{field:?} is there twice")));
            }
        }
        Ok(Info {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            data_offsets: data_offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

fn known_dtype<E: serde::de::Error>(name: &str) -> std::result::Result<&'static str, E> {
    let known = DTYPES.iter().find(|(known, _)| *known == name);
    known.map(|(known, _)| *known).ok_or_else(|| E::custom(format!("unknown dtype {name:?}")))
}

/// The axes of a shape, a few at most.
struct Axes(Vec<u64>);

impl<'de> serde::Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(AxesVisitor)
    }
}

struct AxesVisitor;

impl<'de> Visitor<'de> for AxesVisitor {
    type Value = Axes;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of axes")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(
        self,
        mut list: A,
    ) -> std::result::Result<Axes, A::Error> {
        let mut axes = Vec::new();
        while let Some(axis) = list.next_element()? {
            if axes.len() == MOST_AXES {
                return Err(A::Error::custom(format!("a shape of more than {MOST_AXES} axes")));
            }
            axes.push(axis);
        }
        Ok(Axes(axes))
    }
}
