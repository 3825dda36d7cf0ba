//! The choice among all plans that fit: the fastest, of these the one that copies least.

use std::collections::BTreeMap;

use super::frontier::{Choice, best_within, frontier, kept_frontier};
use super::outcome::{Plan, Source, stage_plan};
use super::request::{Request, Residency, Stage, aligned};
use super::schedule::{self, Place};
use crate::{Error, Result};

/// The best plan for `request`.
///
/// Fails with [`Error::Memory`] where the budget is below the smallest, which it names.
pub fn plan(request: &Request) -> Result<Plan> {
    request.check()?;
    let search = Search::new(request)?;
    search.refuse_what_cannot_fit()?;
    let mut best: Option<Candidate> = None;
    for sources in search.assignments() {
        let Some(candidate) = search.candidate(sources) else {
            continue;
        };
        if best.as_ref().is_none_or(|best| candidate.rank < best.rank) {
            best = Some(candidate);
        }
    }
    let best = best.ok_or_else(|| Error::Memory("no plan fits the budget".into()))?;
    search.assemble(&best)
}

/// The least device and host bytes for which there is a plan.
pub fn smallest(request: &Request) -> Result<(u64, u64)> {
    request.check()?;
    let search = Search::new(request)?;
    Ok((search.smallest_device().0, search.smallest_host()))
}

struct Ways {
    kept: Vec<Choice>,
    pinned: Vec<Choice>,
    files: Vec<Choice>,
}

struct Search<'a> {
    request: &'a Request,
    components: Vec<(&'a str, u64)>,
    /// Of each stage.
    ways: Vec<Ways>,
    /// Index of each stage's component.
    owners: Vec<usize>,
    demands: Vec<Residency>,
}

struct Candidate<'a> {
    /// Smaller is better: time, traffic, host memory.
    rank: (u64, u64, u64),
    sources: Vec<Source>,
    choices: Vec<&'a Choice>,
}

impl<'a> Search<'a> {
    fn new(request: &'a Request) -> Result<Self> {
        let components: Vec<_> = request.component_bytes().into_iter().collect();
        let owner =
            |stage: &Stage| components.iter().position(|(name, _)| *name == stage.component);
        let owners: Vec<usize> = request.stages.iter().filter_map(owner).collect();
        let mut demands = vec![Residency::Free; components.len()];
        for (stage, &owner) in request.stages.iter().zip(&owners) {
            let demand = &mut demands[owner];
            if *demand != Residency::Free
                && stage.residency != Residency::Free
                && *demand != stage.residency
            {
                let component = &stage.component;
                let message = format!("{component:?} cannot both stay on the device and leave it");
                return Err(Error::Argument(message));
            }
            if stage.residency != Residency::Free {
                *demand = stage.residency;
            }
        }
        let machine = &request.machine;
        let ways = request.stages.iter().map(|stage| Ways {
            kept: kept_frontier(stage),
            pinned: frontier(request, stage, machine.bus),
            files: frontier(request, stage, machine.files),
        });
        Ok(Self { request, ways: ways.collect(), components, owners, demands })
    }

    /// Every way in which the components' weights can rest that the caller allows.
    fn assignments(&self) -> impl Iterator<Item = Vec<Source>> + '_ {
        let choices = [Source::Device, Source::Pinned, Source::Files];
        let count = 3_usize.pow(self.components.len() as u32);
        let sources = move |mut code: usize| {
            let mut digit = |_: &Residency| {
                let source = choices[code % 3];
                code /= 3;
                source
            };
            self.demands.iter().map(&mut digit).collect::<Vec<_>>()
        };
        (0..count).map(sources).filter(|sources| {
            sources.iter().zip(&self.demands).all(|(source, demand)| match demand {
                Residency::Free => true,
                Residency::Keep => *source == Source::Device,
                Residency::Drop => *source != Source::Device,
            })
        })
    }

    fn total(&self, sources: &[Source], wanted: impl Fn(Source) -> bool) -> u64 {
        let rests = self.components.iter().zip(sources);
        rests.filter(|(_, source)| wanted(**source)).map(|((_, bytes), _)| bytes).sum()
    }

    fn pinned(&self, sources: &[Source]) -> u64 {
        self.total(sources, |source| match source {
            Source::Pinned => true,
            Source::Device => self.request.host_copies,
            Source::Files => false,
        })
    }

    fn kept(&self, sources: &[Source]) -> u64 {
        self.total(sources, |source| source == Source::Device)
    }

    fn candidate(&self, sources: Vec<Source>) -> Option<Candidate<'_>> {
        let machine = &self.request.machine;
        let host = machine.host_fixed_bytes + machine.window_bytes + self.pinned(&sources);
        let gone = machine.device_fixed_bytes + self.kept(&sources);
        if host > machine.host_bytes || gone > machine.device_bytes {
            return None;
        }
        let room = machine.device_bytes - gone;
        let mut choices = Vec::with_capacity(self.ways.len());
        for (ways, &owner) in self.ways.iter().zip(&self.owners) {
            let ways = match sources[owner] {
                Source::Device => &ways.kept,
                Source::Pinned => &ways.pinned,
                Source::Files => &ways.files,
            };
            choices.push(best_within(ways, room)?);
        }
        let nanos = choices.iter().map(|choice| choice.pace.nanos).sum();
        let copied = choices.iter().map(|choice| choice.copied_bytes).sum();
        Some(Candidate { rank: (nanos, copied, host), sources, choices })
    }

    /// The least device bytes, and the stage that needs them.
    fn smallest_device(&self) -> (u64, &str) {
        let demanded = |(demand, (_, bytes)): (&Residency, &(&str, u64))| {
            if *demand == Residency::Keep { *bytes } else { 0 }
        };
        let kept: u64 = self.demands.iter().zip(&self.components).map(demanded).sum();
        let least = |ways: &Ways, owner: usize| match self.demands[owner] {
            Residency::Keep => ways.kept[0].memory,
            _ => ways.pinned[0].memory,
        };
        let stages = self.ways.iter().zip(&self.owners).zip(&self.request.stages);
        let needs = stages.map(|((ways, &owner), stage)| (least(ways, owner), stage.name.as_str()));
        let (memory, stage) = needs.max_by_key(|(memory, _)| *memory).unwrap_or((0, ""));
        (self.request.machine.device_fixed_bytes + kept + memory, stage)
    }

    fn smallest_host(&self) -> u64 {
        let least = |demand: &Residency| match demand {
            Residency::Keep => Source::Device,
            _ => Source::Files,
        };
        let sources: Vec<Source> = self.demands.iter().map(least).collect();
        let machine = &self.request.machine;
        machine.host_fixed_bytes + machine.window_bytes + self.pinned(&sources)
    }

    fn refuse_what_cannot_fit(&self) -> Result<()> {
        let machine = &self.request.machine;
        let (device, stage) = self.smallest_device();
        if device > machine.device_bytes {
            return Err(Error::Memory(format!(
                "{} of device memory cannot hold stage {stage:?}: {device} bytes ({}) is the \
                 smallest budget that can",
                readable(machine.device_bytes, f64::round),
                readable(device, f64::ceil)
            )));
        }
        let host = self.smallest_host();
        if host > machine.host_bytes {
            return Err(Error::Memory(format!(
                "{} of host memory is too little: {host} bytes ({}) is the smallest budget that \
                 can work",
                readable(machine.host_bytes, f64::round),
                readable(host, f64::ceil)
            )));
        }
        Ok(())
    }

    fn assemble(&self, best: &Candidate) -> Result<Plan> {
        let kept_bytes = self.kept(&best.sources);
        let kept_places = self.kept_places(&best.sources);
        let gone = self.request.machine.device_fixed_bytes + kept_bytes;
        let mut stages = Vec::new();
        for ((stage, choice), &owner) in
            self.request.stages.iter().zip(&best.choices).zip(&self.owners)
        {
            let source = best.sources[owner];
            let places = if source == Source::Device {
                let place = |block: &super::Block| kept_places[&(owner, block.name.as_str())];
                stage.blocks.iter().map(place).collect()
            } else {
                schedule::places(stage, choice)?
            };
            stages.push(stage_plan(self.request, stage, (choice, source), places, gone));
        }
        let machine = &self.request.machine;
        let names = self.components.iter().map(|(name, _)| (*name).to_owned());
        let pinned_bytes = self.pinned(&best.sources);
        Ok(Plan {
            sources: names.zip(best.sources.iter().copied()).collect(),
            kept_bytes,
            peak_bytes: stages.iter().map(|stage| stage.peak_bytes).max().unwrap_or(0),
            host_bytes: machine.host_fixed_bytes + machine.window_bytes + pinned_bytes,
            pinned_bytes,
            nanos: best.rank.0,
            copied_bytes: best.rank.1,
            smallest_device_bytes: self.smallest_device().0,
            smallest_host_bytes: self.smallest_host(),
            stages,
        })
    }

    /// Every kept block behind the one before it.
    fn kept_places(&self, sources: &[Source]) -> BTreeMap<(usize, &str), Place> {
        let mut places = BTreeMap::new();
        let mut offset = 0;
        for (stage, &owner) in self.request.stages.iter().zip(&self.owners) {
            for block in &stage.blocks {
                let key = (owner, block.name.as_str());
                if sources[owner] == Source::Device && !places.contains_key(&key) {
                    let bytes = aligned(block.bytes);
                    places.insert(key, Place { offset, bytes });
                    offset += bytes;
                }
            }
        }
        places
    }
}

/// An amount as people read it; rounded up, it can be asked for as it stands.
fn readable(bytes: u64, round: fn(f64) -> f64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mebibytes = bytes as f64 / MIB;
    if mebibytes < 100.0 {
        return format!("{:.1} MiB", round(10.0 * mebibytes) / 10.0);
    }
    format!("{:.2} GiB", round(100.0 * mebibytes / 1024.0) / 100.0)
}
