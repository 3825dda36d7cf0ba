//! What the executor does, in order, and which of it waits for what.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::frontier::Choice;
use super::request::{Stage, aligned};
use crate::pool::Pool;
use crate::{Error, Result};

/// A stretch of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it starts; a multiple of the alignment.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// One thing to do. Blocks and places are indices into the stage's.
///
/// `Alloc` and `Copy` go to the copy engine and `Ready`, `Use` and `Free` to the compute engine,
/// each engine in the order of the list. The host issues the list from top to bottom and waits
/// for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The place is the block's; the copy engine waits until its last `Free` has come about.
    Alloc {
        /// Its new owner.
        block: usize,
        /// The place.
        place: usize,
    },
    /// The copy engine moves the block's weights there.
    Copy {
        /// What is copied.
        block: usize,
        /// Where to.
        place: usize,
    },
    /// The compute engine waits until the block has arrived.
    Ready {
        /// What is waited for.
        block: usize,
    },
    /// The compute engine runs the block.
    Use {
        /// What runs.
        block: usize,
    },
    /// The place is nobody's as soon as the compute engine gets here.
    Free {
        /// Its owner so far.
        block: usize,
        /// The place.
        place: usize,
    },
}

/// Places of a stage's blocks in its arena: the slots first, then the residents in order.
pub(super) fn places(stage: &Stage, choice: &Choice) -> Result<Vec<Place>> {
    let arena = choice.slots as u64 * choice.slot_bytes + choice.resident_bytes;
    let mut pool = Pool::new(arena, super::ALIGNMENT)?;
    if choice.slots > 0 {
        pool.set_aside(choice.slot_bytes, choice.slots as u64)?;
    }
    let slots = (0..choice.slots).map(|_| choice.slot_bytes);
    let blocks = stage.blocks.iter().zip(&choice.streamed);
    let residents =
        blocks.filter(|(_, streamed)| !**streamed).map(|(block, _)| aligned(block.bytes));
    let take = |bytes| {
        let grant = pool.take(bytes);
        let place = grant.map(|grant| Place { offset: grant.offset(), bytes: grant.bytes() });
        place.ok_or_else(|| Error::argument("the arena is too small for its places"))
    };
    slots.chain(residents).map(take).collect()
}

/// Everything the executor does in a stage whose weights come and go.
///
/// Copies are issued in the order of use, each as soon as its place is free: whichever engine is
/// late, the other waits for it and for nothing else.
pub(super) fn actions(choice: &Choice, passes: u32, stable: bool) -> Vec<Action> {
    let residents = choice.streamed.iter().filter(|streamed| !**streamed).count();
    let mut list = List {
        actions: Vec::new(),
        copies: copies(choice, passes, stable).into_iter().peekable(),
        taken: vec![false; choice.slots + residents],
        home: vec![0; choice.streamed.len()],
    };
    list.issue_copies();
    for pass in 0..passes {
        for (block, &streamed) in choice.streamed.iter().enumerate() {
            if streamed || pass == 0 {
                list.actions.push(Action::Ready { block });
            }
            list.actions.push(Action::Use { block });
            if streamed {
                list.free(block);
                list.issue_copies();
            }
        }
    }
    for (block, _) in choice.streamed.iter().enumerate().filter(|(_, streamed)| !**streamed) {
        list.free(block);
    }
    list.actions
}

/// A list of actions in the making.
struct List {
    actions: Vec<Action>,
    copies: Peekable<IntoIter<Copying>>,
    /// Places that have an owner.
    taken: Vec<bool>,
    /// Where each block is. One that is copied again has been used before: slots are fewer than
    /// the blocks that share them.
    home: Vec<usize>,
}

impl List {
    fn issue_copies(&mut self) {
        while let Some(copy) = self.copies.next_if(|copy| !self.taken[copy.place]) {
            let Copying { block, place } = copy;
            self.taken[place] = true;
            self.home[block] = place;
            self.actions.extend([Action::Alloc { block, place }, Action::Copy { block, place }]);
        }
    }

    fn free(&mut self, block: usize) {
        let place = self.home[block];
        self.taken[place] = false;
        self.actions.push(Action::Free { block, place });
    }
}

struct Copying {
    block: usize,
    place: usize,
}

/// Every copy of the stage, in order.
fn copies(choice: &Choice, passes: u32, stable: bool) -> Vec<Copying> {
    let mut copies = Vec::new();
    let mut turn = 0;
    for pass in 0..passes {
        if stable {
            turn = 0;
        }
        let mut resident = choice.slots;
        for (block, &streamed) in choice.streamed.iter().enumerate() {
            if streamed {
                let place = turn % choice.slots;
                turn += 1;
                copies.push(Copying { block, place });
            } else {
                if pass == 0 {
                    let place = resident;
                    copies.push(Copying { block, place });
                }
                resident += 1;
            }
        }
    }
    copies
}
