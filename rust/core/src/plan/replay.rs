//! Plays a list of actions in virtual time, with one copy engine and one compute engine.
//!
//! The replay knows only what a device knows: what it is told to wait for, it waits for. Whether
//! that was enough is checked apart from it, by time and by owner.

use super::schedule::{Action, Place};

/// What an engine did, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The block it was about.
    pub block: usize,
    /// Where the block was.
    pub place: usize,
    /// Nanoseconds from the start of the stage.
    pub start: u64,
    /// When it was done.
    pub end: u64,
}

/// A list of actions, played.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Copies in order.
    pub copies: Vec<Span>,
    /// Uses in order.
    pub uses: Vec<Span>,
    /// When the last use was done.
    pub nanos: u64,
    /// Time that the compute engine waited for copies.
    pub stall_nanos: u64,
    /// Most bytes that were owned at a time.
    pub peak_bytes: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
}

/// Why a list of actions must not be carried out. Numbers are indices of blocks and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Two places share bytes, or one reaches beyond the arena.
    #[error("place {0} overlaps another or the end of the arena")]
    Layout(usize),
    /// The block is larger than the place.
    #[error("block {0} does not fit in place {1}")]
    TooLarge(usize, usize),
    /// The place belongs to another block.
    #[error("block {0} gets place {1}, which is another's")]
    TwoOwners(usize, usize),
    /// The block writes to or leaves a place that is not its own.
    #[error("block {0} acts on place {1}, which is not its own")]
    NotOwner(usize, usize),
    /// Bytes are written over while they are read.
    #[error("block {0} is copied to place {1} while that is in use")]
    Overwritten(usize, usize),
    /// The block computes with weights that are not there yet, or no more.
    #[error("block {0} is used before it has arrived")]
    BeforeArrival(usize),
    /// The block leaves its place before it has arrived there.
    #[error("block {0} leaves place {1} while it is in flight")]
    InFlight(usize, usize),
    /// The uses are not the passes over the blocks.
    #[error("block {0} is not the next in order")]
    OutOfOrder(usize),
    /// At the end a place is owned, or uses are missing.
    #[error("the list ends early: {0} uses done, {1} places owned")]
    Unfinished(usize, usize),
}

/// What is played: the plan's own times, or others, to see that order does not hang on luck.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Bytes of each block.
    pub bytes: &'a [u64],
    /// Nanoseconds of each use, in order; taken from the start again when they run out.
    pub uses: &'a [u64],
    /// Nanoseconds of each block's copy.
    pub copies: &'a [u64],
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// The arena's places.
    pub places: &'a [Place],
    /// Passes over the blocks.
    pub passes: u32,
}

/// A place while the actions are played.
#[derive(Clone, Copy, Debug, Default)]
struct Spot {
    owner: Option<usize>,
    /// The block whose bytes are there, and when they have arrived.
    content: Option<(usize, u64)>,
    /// When the compute engine says that it may be written to.
    released: u64,
    /// When it was last read.
    read_until: u64,
}

/// Plays `actions`.
pub fn replay(scene: &Scene, actions: &[Action]) -> Result<Timeline, Fault> {
    check_layout(scene)?;
    let mut player = Player {
        scene,
        spots: vec![Spot::default(); scene.places.len()],
        home: vec![None; scene.bytes.len()],
        copy_clock: 0,
        compute_clock: 0,
        owned: 0,
        timeline: Timeline::default(),
    };
    for &action in actions {
        match action {
            Action::Alloc { block, place } => player.alloc(block, place)?,
            Action::Copy { block, place } => player.copy(block, place)?,
            Action::Ready { block } => player.ready(block)?,
            Action::Use { block } => player.run(block)?,
            Action::Free { block, place } => player.free(block, place)?,
        }
    }
    player.finish()
}

fn check_layout(scene: &Scene) -> Result<(), Fault> {
    let mut order: Vec<usize> = (0..scene.places.len()).collect();
    order.sort_by_key(|&index| scene.places[index].offset);
    let mut end = 0;
    for index in order {
        let place = scene.places[index];
        if place.offset < end || place.offset + place.bytes > scene.arena_bytes {
            return Err(Fault::Layout(index));
        }
        end = place.offset + place.bytes;
    }
    Ok(())
}

struct Player<'a> {
    scene: &'a Scene<'a>,
    spots: Vec<Spot>,
    /// Where each block was last copied to.
    home: Vec<Option<usize>>,
    copy_clock: u64,
    compute_clock: u64,
    owned: u64,
    timeline: Timeline,
}

impl Player<'_> {
    fn alloc(&mut self, block: usize, place: usize) -> Result<(), Fault> {
        if self.scene.bytes[block] > self.scene.places[place].bytes {
            return Err(Fault::TooLarge(block, place));
        }
        let spot = &mut self.spots[place];
        if spot.owner.is_some() {
            return Err(Fault::TwoOwners(block, place));
        }
        spot.owner = Some(block);
        self.copy_clock = self.copy_clock.max(spot.released);
        self.owned += self.scene.places[place].bytes;
        self.timeline.peak_bytes = self.timeline.peak_bytes.max(self.owned);
        Ok(())
    }

    fn copy(&mut self, block: usize, place: usize) -> Result<(), Fault> {
        let spot = &mut self.spots[place];
        if spot.owner != Some(block) {
            return Err(Fault::NotOwner(block, place));
        }
        let start = self.copy_clock;
        if start < spot.read_until {
            return Err(Fault::Overwritten(block, place));
        }
        let end = start + self.scene.copies[block];
        self.copy_clock = end;
        spot.content = Some((block, end));
        self.home[block] = Some(place);
        self.timeline.copied_bytes += self.scene.bytes[block];
        self.timeline.copies.push(Span { block, place, start, end });
        Ok(())
    }

    /// Where `block` is and when it has arrived; nowhere, once its bytes were written over.
    fn arrival(&self, block: usize) -> Result<(usize, u64), Fault> {
        let place = self.home[block].ok_or(Fault::BeforeArrival(block))?;
        match self.spots[place] {
            Spot { owner: Some(owner), content: Some((content, arrived)), .. }
                if owner == block && content == block =>
            {
                Ok((place, arrived))
            }
            _ => Err(Fault::BeforeArrival(block)),
        }
    }

    fn ready(&mut self, block: usize) -> Result<(), Fault> {
        let (_, arrived) = self.arrival(block)?;
        self.timeline.stall_nanos += arrived.saturating_sub(self.compute_clock);
        self.compute_clock = self.compute_clock.max(arrived);
        Ok(())
    }

    fn run(&mut self, block: usize) -> Result<(), Fault> {
        let done = self.timeline.uses.len();
        if block != done % self.scene.bytes.len() || done >= self.total_uses() {
            return Err(Fault::OutOfOrder(block));
        }
        let (place, arrived) = self.arrival(block)?;
        let start = self.compute_clock;
        if start < arrived {
            return Err(Fault::BeforeArrival(block));
        }
        let end = start + self.scene.uses[done % self.scene.uses.len()];
        self.compute_clock = end;
        self.spots[place].read_until = end;
        self.timeline.uses.push(Span { block, place, start, end });
        Ok(())
    }

    fn free(&mut self, block: usize, place: usize) -> Result<(), Fault> {
        let now = self.compute_clock;
        let spot = &mut self.spots[place];
        if spot.owner != Some(block) {
            return Err(Fault::NotOwner(block, place));
        }
        if spot.content.is_none_or(|(content, arrived)| content != block || arrived > now) {
            return Err(Fault::InFlight(block, place));
        }
        spot.owner = None;
        spot.released = now;
        self.owned -= self.scene.places[place].bytes;
        Ok(())
    }

    fn total_uses(&self) -> usize {
        self.scene.bytes.len() * self.scene.passes as usize
    }

    fn finish(mut self) -> Result<Timeline, Fault> {
        let owned = self.spots.iter().filter(|spot| spot.owner.is_some()).count();
        let done = self.timeline.uses.len();
        if owned > 0 || done != self.total_uses() {
            return Err(Fault::Unfinished(done, owned));
        }
        self.timeline.nanos = self.compute_clock;
        Ok(self.timeline)
    }
}
