//! How long a stage takes for one way of holding its weights: a recurrence over its uses.

use std::collections::HashMap;

/// Most slots a stage can have; see `Request::max_slots`.
const SLOTS: usize = 8;

/// The work of one pass and how the weights get there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    /// Nanoseconds of each block's use.
    pub uses: &'a [u64],
    /// Nanoseconds of each block's copy.
    pub copies: &'a [u64],
    /// Blocks that are copied in every pass; the others arrive in the first and stay.
    pub streamed: &'a [bool],
    /// Slots that the streamed blocks share in turn.
    pub slots: usize,
    /// Every pass starts with the first slot.
    pub stable: bool,
    /// Passes over the blocks.
    pub passes: u32,
}

impl Work<'_> {
    /// No slots can be faster: the first block has to arrive and everything has to be computed,
    /// or everything has to be copied and the last block computed.
    pub fn bound(&self) -> u64 {
        let passes = u64::from(self.passes);
        let sum = |nanos: &[u64], of: &dyn Fn(usize) -> bool| -> u64 {
            nanos.iter().enumerate().filter(|(index, _)| of(*index)).map(|(_, nanos)| nanos).sum()
        };
        let computing = self.copies[0] + passes * sum(self.uses, &|_| true);
        let streaming = sum(self.copies, &|index| self.streamed[index]);
        let last = (0..self.uses.len()).rfind(|&index| self.streamed[index] || passes == 1);
        let after = last.map_or(0, |last| sum(self.uses, &|index| index >= last));
        let copying = streaming * (passes - 1) + sum(self.copies, &|_| true) + after;
        computing.max(copying)
    }
}

/// How long a stage takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The whole stage.
    pub nanos: u64,
    /// Its first pass, in which everything is copied.
    pub first_pass_nanos: u64,
    /// Time in which the stage waited for copies.
    pub stall_nanos: u64,
}

/// Where the two engines stand, relative to the end of a pass. Equal states have equal futures.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    engine: i64,
    free: [i64; SLOTS],
}

#[derive(Default)]
struct Engines {
    /// When the copy engine has done all it was given.
    copied: u64,
    /// When the compute engine has.
    computed: u64,
    /// When the last use of each slot ends.
    free: [u64; SLOTS],
    /// Copies into slots so far.
    streamed: usize,
}

impl Engines {
    fn pass(&mut self, work: &Work, first: bool) {
        let mut turn = if work.stable { 0 } else { self.streamed };
        for index in 0..work.uses.len() {
            let mut slot = None;
            if work.streamed[index] {
                let taken = turn % work.slots;
                slot = Some(taken);
                turn += 1;
                self.streamed += 1;
                self.copied = self.copied.max(self.free[taken]) + work.copies[index];
                self.computed = self.computed.max(self.copied);
            } else if first {
                self.copied += work.copies[index];
                self.computed = self.computed.max(self.copied);
            }
            self.computed += work.uses[index];
            if let Some(slot) = slot {
                self.free[slot] = self.computed;
            }
        }
    }

    fn state(&self, work: &Work) -> State {
        let now = self.computed.cast_signed();
        let engine = self.copied.cast_signed() - now;
        let first = if work.stable { 0 } else { self.streamed };
        let mut free = [0; SLOTS];
        for (place, free) in free.iter_mut().enumerate().take(work.slots) {
            // A slot that is free before the copy engine is, is free in time.
            *free = (self.free[(first + place) % work.slots].cast_signed() - now).max(engine);
        }
        State { engine, free }
    }
}

/// The time of `work.passes` passes, exactly as the replay of the schedule finds it.
///
/// The engines fall into a rhythm: once they stand as they stood before, the rest is known.
pub(super) fn pace(work: &Work) -> Pace {
    let mut engines = Engines::default();
    let mut seen: HashMap<State, (u32, u64)> = HashMap::new();
    let mut first_pass_nanos = 0;
    let mut skipped = 0;
    let mut pass = 0;
    while pass < work.passes {
        engines.pass(work, pass == 0);
        pass += 1;
        if pass == 1 {
            first_pass_nanos = engines.computed;
        }
        let before = seen.insert(engines.state(work), (pass, engines.computed));
        if let Some((earlier, then)) = before {
            let rhythm = pass - earlier;
            let rounds = (work.passes - pass) / rhythm;
            skipped += u64::from(rounds) * (engines.computed - then);
            pass += rounds * rhythm;
            seen.clear();
        }
    }
    let nanos = engines.computed + skipped;
    let computing = work.uses.iter().sum::<u64>() * u64::from(work.passes);
    Pace { nanos, first_pass_nanos, stall_nanos: nanos - computing }
}
