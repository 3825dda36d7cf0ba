//! Places in one stretch of memory: equal ones from classes, odd ones best-fit with coalescing.
//!
//! The pool moves no bytes and knows no device: it decides offsets. A [`Grant`] cannot be copied,
//! so a place has one owner, and giving it back takes it from them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Error, Result};

/// A stretch of the pool that belongs to whoever holds this.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a grant that is dropped is lost to the pool: give it back"]
pub struct Grant {
    offset: u64,
    bytes: u64,
}

impl Grant {
    /// Where it starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Equal places, set aside together, so that they can never be fragmented.
#[derive(Debug)]
struct Class {
    bytes: u64,
    offset: u64,
    count: u64,
    free: BTreeSet<u64>,
}

impl Class {
    fn holds(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.bytes * self.count).contains(&offset)
    }
}

/// An allocator of offsets in `capacity` bytes.
#[derive(Debug)]
pub struct Pool {
    capacity: u64,
    alignment: u64,
    classes: Vec<Class>,
    /// Free stretches outside the classes, by offset; never two that touch.
    holes: BTreeMap<u64, u64>,
    /// Granted stretches outside the classes, by offset.
    granted: BTreeMap<u64, u64>,
}

impl Pool {
    /// An empty pool in which every place starts at a multiple of `alignment`.
    pub fn new(capacity: u64, alignment: u64) -> Result<Self> {
        if !alignment.is_power_of_two() {
            let message = format!("an alignment of {alignment}: a power of two is needed");
            return Err(Error::Argument(message));
        }
        let capacity = capacity / alignment * alignment;
        let holes = (capacity > 0).then_some((0, capacity)).into_iter().collect();
        Ok(Self { capacity, alignment, classes: Vec::new(), holes, granted: BTreeMap::new() })
    }

    /// Sets `count` equal places of `bytes` aside. `take` of that size is served from them first.
    pub fn set_aside(&mut self, bytes: u64, count: u64) -> Result<()> {
        let bytes = self.rounded(bytes)?;
        let whole = bytes.checked_mul(count).filter(|whole| *whole > 0);
        let Some(offset) = whole.and_then(|whole| self.cut(whole)) else {
            return Err(Error::Argument(format!(
                "{count} places of {bytes} bytes: the pool has {} bytes in one piece",
                self.largest_hole()
            )));
        };
        let free = (0..count).map(|index| offset + index * bytes).collect();
        self.classes.push(Class { bytes, offset, count, free });
        Ok(())
    }

    /// A place of `bytes`, rounded up to the alignment; `None` where no free piece is that long.
    pub fn take(&mut self, bytes: u64) -> Option<Grant> {
        let bytes = self.rounded(bytes).ok()?;
        let class =
            self.classes.iter_mut().find(|class| class.bytes == bytes && !class.free.is_empty());
        if let Some(offset) = class.and_then(|class| class.free.pop_first()) {
            return Some(Grant { offset, bytes });
        }
        let offset = self.cut(bytes)?;
        self.granted.insert(offset, bytes);
        Some(Grant { offset, bytes })
    }

    /// Takes a place back; fails where this pool did not grant it.
    #[allow(clippy::needless_pass_by_value, reason = "whoever gives a place back has it no more")]
    pub fn give(&mut self, grant: Grant) -> Result<()> {
        let Grant { offset, bytes } = grant;
        if let Some(class) = self.classes.iter_mut().find(|class| class.holds(offset)) {
            if class.bytes == bytes
                && (offset - class.offset).is_multiple_of(bytes)
                && class.free.insert(offset)
            {
                return Ok(());
            }
        } else if self.granted.get(&offset) == Some(&bytes) {
            self.granted.remove(&offset);
            self.mend(offset, bytes);
            return Ok(());
        }
        let message = format!("{bytes} bytes at {offset}: this pool has not granted that place");
        Err(Error::Argument(message))
    }

    /// Bytes that nobody holds, those of the classes included.
    pub fn free_bytes(&self) -> u64 {
        let classes = self.classes.iter().map(|class| class.bytes * class.free.len() as u64);
        classes.sum::<u64>() + self.holes.values().sum::<u64>()
    }

    /// Bytes of the pool.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The longest free piece outside the classes.
    pub fn largest_hole(&self) -> u64 {
        self.holes.values().copied().max().unwrap_or(0)
    }

    fn rounded(&self, bytes: u64) -> Result<u64> {
        match bytes.max(1).checked_next_multiple_of(self.alignment) {
            Some(rounded) => Ok(rounded),
            None => Err(Error::Argument(format!("{bytes} bytes are beyond every pool"))),
        }
    }

    /// The start of the smallest hole that is long enough, the first of several, cut off there.
    fn cut(&mut self, bytes: u64) -> Option<u64> {
        let fitting = self.holes.iter().filter(|(_, length)| **length >= bytes);
        let (&offset, &length) = fitting.min_by_key(|(offset, length)| (**length, **offset))?;
        self.holes.remove(&offset);
        if length > bytes {
            self.holes.insert(offset + bytes, length - bytes);
        }
        Some(offset)
    }

    /// Makes a stretch free and joins it with the holes that touch it.
    fn mend(&mut self, mut offset: u64, mut bytes: u64) {
        if let Some(after) = self.holes.remove(&(offset + bytes)) {
            bytes += after;
        }
        if let Some((&before, &length)) = self.holes.range(..offset).next_back()
            && before + length == offset
        {
            self.holes.remove(&before);
            offset = before;
            bytes += length;
        }
        self.holes.insert(offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(capacity: u64) -> Pool {
        Pool::new(capacity, 1).unwrap()
    }

    #[test]
    fn the_smallest_hole_that_fits_is_cut() {
        let mut pool = pool(100);
        let grants: Vec<_> = [30, 10, 20, 10, 30].iter().map(|&n| pool.take(n).unwrap()).collect();
        let mut grants = grants.into_iter();
        let mut give = |pool: &mut Pool| pool.give(grants.next().unwrap()).unwrap();
        give(&mut pool); // 30 free at 0
        grants.next(); // 10 held at 30, on purpose
        pool.give(grants.next().unwrap()).unwrap(); // 20 free at 40
        assert_eq!(pool.take(15).unwrap().offset(), 40);
        assert_eq!(pool.take(25).unwrap().offset(), 0);
    }

    #[test]
    fn classes_survive_any_order_and_hold_only_their_size() {
        let mut pool = pool(64);
        pool.set_aside(16, 2).unwrap();
        let odd = pool.take(30).unwrap();
        let (first, second) = (pool.take(16).unwrap(), pool.take(16).unwrap());
        assert_eq!((first.offset(), second.offset(), odd.offset()), (0, 16, 32));
        assert!(pool.take(16).is_none());
        pool.give(first).unwrap();
        assert!(pool.take(3).is_none(), "an odd size must not eat a slot");
        assert_eq!(pool.take(16).unwrap().offset(), 0);
    }

    #[test]
    fn a_place_of_another_pool_is_refused() {
        let (mut ours, mut theirs) = (pool(64), pool(64));
        theirs.set_aside(8, 1).unwrap();
        let slot = theirs.take(8).unwrap();
        let odd = theirs.take(8).unwrap();
        assert!(ours.give(odd).is_err());
        assert!(ours.give(slot).is_err());
        assert_eq!(ours.free_bytes(), 64);
    }

    #[test]
    fn sizes_beyond_all_bounds_are_refused() {
        let mut pool = Pool::new(1 << 20, 512).unwrap();
        assert!(pool.take(u64::MAX).is_none());
        assert!(pool.set_aside(u64::MAX / 2, 4).is_err());
        assert!(pool.set_aside(512, 0).is_err());
        assert!(Pool::new(1, 3).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Nobody shares a byte, nothing leaks, and an empty pool is one piece again.
        #[test]
        fn grants_are_disjoint_and_come_back_whole(
            capacity in 1u64..4096,
            class in prop::option::of((1u64..200, 1u64..6)),
            steps in prop::collection::vec((any::<bool>(), 0usize..16, 1u64..600), 1..80),
        ) {
            let mut pool = Pool::new(capacity, 8).unwrap();
            if let Some((bytes, count)) = class {
                let _ = pool.set_aside(bytes, count);
            }
            let whole = (pool.capacity(), pool.largest_hole());
            let mut held: Vec<Grant> = Vec::new();
            for (take, index, bytes) in steps {
                if take {
                    let room = pool.largest_hole();
                    match pool.take(bytes) {
                        Some(grant) => {
                            prop_assert!(grant.bytes() >= bytes && grant.offset() % 8 == 0);
                            prop_assert!(grant.offset() + grant.bytes() <= pool.capacity());
                            for other in &held {
                                let apart = grant.offset() + grant.bytes() <= other.offset()
                                    || other.offset() + other.bytes() <= grant.offset();
                                prop_assert!(apart, "{grant:?} and {other:?} overlap");
                            }
                            held.push(grant);
                        }
                        None => prop_assert!(room < bytes.next_multiple_of(8)),
                    }
                } else if index < held.len() {
                    pool.give(held.swap_remove(index)).unwrap();
                }
                let granted: u64 = held.iter().map(Grant::bytes).sum();
                prop_assert_eq!(granted + pool.free_bytes(), pool.capacity());
            }
            for grant in held {
                pool.give(grant).unwrap();
            }
            prop_assert_eq!((pool.free_bytes(), pool.largest_hole()), whole);
        }
    }
}
