//! Who stands still, and who only waits for the one that does.
//!
//! A station stands still when the one before it has had more than it for [`STILL`], and it has not moved meanwhile. What
//! is before one that stands still piles up, and what is after it has nothing to do, so more than one may seem to stand:
//! - one that is at work on the same thing all the while (a store that applies a time) is the one, and so is a store that
//!   says why it does not go on; the stations whose workers it keeps wait for it;
//! - stores that stand without one of them being at work wait for the dataflows, which stand still unless they are being
//!   given more: a large transaction comes in pieces, and is one time;
//! - in a process that only reads them, the first of the stores that stand is the one: who writes them does not go on;
//! - reactions come after the rows, and nobody waits for them. Where one process does everything they have workers of their own,
//!   and stand for themselves; elsewhere they wait for whichever of the dataflows and the stores stands;
//! - one that was asked to wait, by `verify` or a resync, stands as long as they say, and what waits for it does so too;
//! - the stream, which hands over to the log, waits for it, and for a database that does not answer.

use std::time::{Duration, Instant};

use feedmill_api::{Stage, StageState};
use feedmill_model::Position;

use super::station::Seen;
use super::{millis, timestamp};

/// How long a station may stand although there is something to do.
pub(super) const STILL: Duration = Duration::from_secs(3);
/// A station that has not moved for so long is idle when there is nothing to do.
const MOVING: Duration = Duration::from_secs(2);

const POSTGRESQL: &str = "postgresql";
const STREAM: &str = "stream";
const LOG: &str = "log";
const KAFKA: &str = "kafka";
const DATAFLOWS: &str = "dataflows";
const STORES: [&str; 4] = ["facts", "rows", "home", "search"];
const ROWS: &str = "rows";
const REACTIONS: &str = "reactions";

/// What one station does.
struct Verdict {
    name: &'static str,
    state: StageState,
    since: Option<Instant>,
    reason: Option<String>,
    /// It is at work on the same thing for too long.
    stuck: bool,
    /// It is in the middle of a large transaction, and has lately taken a part of it.
    midway: bool,
}

impl Verdict {
    fn stands(&self) -> bool {
        self.state == StageState::StandsStill
    }

    fn waits_for(&mut self, what: &str) {
        self.state = StageState::Waiting;
        self.reason = Some(format!("it waits for {what}"));
    }
}

/// Each stage, and since when it is in its state.
pub(super) fn stages(seen: &[Seen], now: Instant) -> Vec<(Stage, Option<Instant>)> {
    let before = |index: usize| match seen.get(index) {
        Some(station) if station.name == REACTIONS => seen.iter().find(|station| station.name == ROWS),
        _ => index.checked_sub(1).and_then(|before| seen.get(before)),
    };
    let mut verdicts: Vec<Verdict> =
        seen.iter().enumerate().map(|(index, station)| verdict(station, before(index), now)).collect();
    let is_there = |name: &str| seen.iter().any(|station| station.name == name);
    let reactions_alone = is_there(DATAFLOWS) && !is_there(KAFKA);
    blame(&mut verdicts, reactions_alone);
    if !reactions_alone {
        excuse_reactions(&mut verdicts);
    }
    let told = seen.iter().enumerate().zip(verdicts);
    told.map(|((index, station), verdict)| {
        let since = verdict.since;
        (stage(station, before(index), verdict, now), since)
    })
    .collect()
}

fn verdict(station: &Seen, before: Option<&Seen>, now: Instant) -> Verdict {
    let old = |since: Instant| now.saturating_duration_since(since) >= STILL;
    let passed = before.and_then(|before| passed(before, station));
    let midway = station.midway.is_some_and(|midway| !old(midway));
    let (state, since, reason, stuck) = match (&station.waits, &station.at_work, station.heard) {
        (Some((since, reason)), ..) => {
            // One that answers has stood since its last answer, whenever it was noticed.
            let since = station.heard.filter(|_| station.answers).map_or(*since, |heard| heard.min(*since));
            let stands = old(since) && !station.held;
            let state = if stands { StageState::StandsStill } else { StageState::Waiting };
            // A store that says why is the one.
            (state, Some(since), Some(reason.clone()), stands && STORES.contains(&station.name))
        }
        (_, Some((since, what)), _) if old(*since) => {
            (StageState::StandsStill, Some(*since), Some(format!("it is still {what}")), true)
        }
        (.., Some(heard)) if station.answers && old(heard) => {
            (StageState::StandsStill, Some(heard), Some("there is no answer".to_owned()), false)
        }
        _ => match (passed, station.moved) {
            (Some(passed), Some(moved)) if old(passed) && old(moved) && !midway => {
                let reason = "it does not take what the stage before it has".to_owned();
                (StageState::StandsStill, Some(passed.max(moved)), Some(reason), false)
            }
            _ => {
                let moved = station.moved_in_log;
                let moving = moved.is_some_and(|moved| now.saturating_duration_since(moved) < MOVING);
                (if moving || midway { StageState::Moving } else { StageState::Idle }, moved, None, false)
            }
        },
    };
    Verdict { name: station.name, state, since, reason, stuck, midway }
}

/// Leaves the one that the others wait for; they do not wait for reactions that have workers of their own.
fn blame(verdicts: &mut [Verdict], reactions_alone: bool) {
    let stands = |verdicts: &[Verdict], name: &str| verdicts.iter().any(|one| one.name == name && one.stands());
    for (name, other) in [(STREAM, POSTGRESQL), (STREAM, LOG)] {
        if stands(verdicts, other) {
            verdicts.iter_mut().filter(|one| one.name == name && one.stands()).for_each(|one| one.waits_for(other));
        }
    }
    let stuck = verdicts.iter().filter(|one| one.stuck && !(reactions_alone && one.name == REACTIONS));
    let stuck = stuck.max_by_key(|one| STORES.iter().position(|name| *name == one.name));
    if let Some(stuck) = stuck.map(|one| one.name) {
        let others = verdicts.iter_mut().filter(|one| one.name == DATAFLOWS || STORES.contains(&one.name));
        others.filter(|one| one.stands() && one.name != stuck).for_each(|one| one.waits_for(stuck));
        return;
    }
    let store_since =
        verdicts.iter().filter(|one| STORES.contains(&one.name) && one.stands()).filter_map(|one| one.since);
    if let Some(since) = store_since.min() {
        if !verdicts.iter().any(|one| one.name == DATAFLOWS) {
            let mut stores = verdicts.iter_mut().filter(|one| STORES.contains(&one.name) && one.stands());
            let Some(first) = stores.next() else { return };
            first.reason = Some("who writes the stores does not go on: ask `feedmill status` there".to_owned());
            let name = first.name;
            stores.for_each(|one| one.waits_for(name));
            return;
        }
        for one in verdicts.iter_mut() {
            if STORES.contains(&one.name) && one.stands() {
                one.waits_for(DATAFLOWS);
            } else if one.name == DATAFLOWS && !one.midway {
                one.state = StageState::StandsStill;
                one.since = Some(since);
                one.reason = Some("the workers have closed no time of what they were given".to_owned());
            }
        }
    }
}

/// Reactions follow the others, by the same workers.
fn excuse_reactions(verdicts: &mut [Verdict]) {
    let before = |one: &&Verdict| one.name == DATAFLOWS || STORES.contains(&one.name);
    let Some(stands) = verdicts.iter().filter(before).find(|one| one.stands()).map(|one| one.name) else { return };
    let reactions = verdicts.iter_mut().filter(|one| one.name == REACTIONS && one.stands() && !one.stuck);
    reactions.for_each(|one| one.waits_for(stands));
}

/// Since when `before` has more than `station`, as far back as it is remembered; `None` when it has not.
fn passed(before: &Seen, station: &Seen) -> Option<Instant> {
    let own = station.position?;
    before.position.filter(|position| is_ahead(*position, own))?;
    before.samples.iter().find(|sample| is_ahead(sample.position, own)).map(|sample| sample.at)
}

/// Times are compared where both are known: an idle tick moves nothing else.
fn is_ahead(one: Position, other: Position) -> bool {
    match (one.time, other.time) {
        (0, _) | (_, 0) => one.lsn > other.lsn,
        (one, other) => one > other,
    }
}

fn stage(station: &Seen, before: Option<&Seen>, verdict: Verdict, now: Instant) -> Stage {
    let ahead = before.and_then(|before| before.position);
    let behind_bytes = ahead.zip(station.position).map_or(0, |(ahead, own)| ahead.lsn.0.saturating_sub(own.lsn.0));
    let behind_ms = match ahead.zip(station.position) {
        Some((ahead, own)) if ahead.time > 0 && own.time > 0 => ahead.time.saturating_sub(own.time),
        _ => before
            .and_then(|before| passed(before, station))
            .map_or(0, |passed| millis(now.saturating_duration_since(passed))),
    };
    Stage {
        name: station.name.to_owned(),
        state: verdict.state,
        since: verdict.since.map(|since| timestamp(since, now)),
        reason: verdict.reason,
        lsn: station.position.map(|position| position.lsn.to_string()),
        time_ms: station.position.map(|position| position.time).filter(|time| *time > 0),
        saved: station.saved.map(|saved| saved.to_string()),
        behind_bytes,
        behind_ms,
        bytes_per_second: station.speeds.bytes,
        transactions_per_second: station.speeds.transactions,
        changes_per_second: station.speeds.changes,
        deliveries_per_second: station.speeds.deliveries,
    }
}

#[cfg(test)]
mod tests {
    use feedmill_model::Lsn;

    use super::super::station::Station;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The way, each station at its position.
    fn way(at: [u64; 7]) -> [Station; 7] {
        let way = [
            Station::answering(POSTGRESQL),
            Station::answering(STREAM),
            Station::new(LOG),
            Station::new(DATAFLOWS),
            Station::new("facts"),
            Station::new("rows"),
            Station::new("home"),
        ];
        way.iter().zip(at).for_each(|(station, at)| station.moved(Lsn(at)));
        way
    }

    const LEVEL: [u64; 7] = [100; 7];
    const ALIVE: [&str; 2] = [POSTGRESQL, STREAM];

    /// States now, and again so much later, when those who have nothing to do have shown that they live.
    fn states(way: &[Station], later: Duration, alive: &[&str]) -> Vec<(&'static str, StageState)> {
        let now = Instant::now();
        way.iter().for_each(|station| drop(station.seen(now)));
        let then = now + later;
        let seen: Vec<Seen> = way
            .iter()
            .map(|station| {
                let mut seen = station.seen(then);
                if alive.contains(&seen.name) {
                    seen.heard = Some(then);
                }
                seen
            })
            .collect();
        let told = stages(&seen, then);
        seen.iter()
            .zip(told)
            .map(|(seen, (stage, _))| (seen.name, stage.state))
            .filter(|(_, state)| *state != StageState::Idle)
            .collect()
    }

    #[test]
    fn nothing_to_do_is_no_standstill() {
        assert_eq!(states(&way(LEVEL), 100 * SECOND, &ALIVE), []);
    }

    #[test]
    fn a_server_that_does_not_answer_is_named_and_not_the_stream() {
        assert_eq!(states(&way(LEVEL), 4 * SECOND, &[POSTGRESQL]), [(STREAM, StageState::StandsStill)]);
        let both = [(POSTGRESQL, StageState::StandsStill), (STREAM, StageState::Waiting)];
        assert_eq!(states(&way(LEVEL), 4 * SECOND, &[]), both);
    }

    #[test]
    fn the_one_that_does_not_take_what_is_there_is_named_after_a_while() {
        let ahead = |stages: usize| std::array::from_fn(|stage| if stage < stages { 200 } else { 100 });
        assert_eq!(states(&way(ahead(2)), 4 * SECOND, &ALIVE), [(LOG, StageState::StandsStill)]);
        assert_eq!(states(&way(ahead(3)), 4 * SECOND, &ALIVE), [(DATAFLOWS, StageState::StandsStill)]);
        let waits = [(DATAFLOWS, StageState::StandsStill), ("facts", StageState::Waiting)];
        assert_eq!(states(&way(ahead(4)), 4 * SECOND, &ALIVE), waits);
        let stuck = way(ahead(4));
        let _work = stuck[6].at_work("applying time 7");
        let waits = [("facts", StageState::Waiting), ("home", StageState::StandsStill)];
        assert_eq!(states(&stuck, 4 * SECOND, &ALIVE), waits);
    }

    #[test]
    fn reactions_are_named_where_all_else_goes_on() {
        let with = |at, reactions| {
            let last = Station::new(REACTIONS);
            last.moved(Lsn(reactions));
            way(at).into_iter().chain([last]).collect::<Vec<Station>>()
        };
        assert_eq!(states(&with([200; 7], 100), 4 * SECOND, &ALIVE), [(REACTIONS, StageState::StandsStill)]);
        let halfway = with([200; 7], 100);
        halfway[7].midway();
        assert_eq!(states(&halfway, 2 * SECOND, &ALIVE), [(REACTIONS, StageState::Moving)]);
        let both =
            |reactions| [(DATAFLOWS, StageState::StandsStill), ("facts", StageState::Waiting), (REACTIONS, reactions)];
        let stands = [200, 200, 200, 200, 150, 150, 150];
        assert_eq!(states(&with(stands, 100), 4 * SECOND, &ALIVE), both(StageState::StandsStill));
        // One at work keeps nobody from being judged.
        let busy = with(stands, 100);
        let _work = busy[7].at_work("applying time 7");
        assert_eq!(states(&busy, 4 * SECOND, &ALIVE), both(StageState::StandsStill));
        // By the same workers it waits with the others.
        let mut shared = with(stands, 100).split_off(2);
        shared[0] = Station::new(KAFKA);
        shared[0].moved(Lsn(200));
        assert_eq!(states(&shared, 4 * SECOND, &[]), both(StageState::Waiting));
    }

    #[test]
    fn a_store_that_says_why_is_named_and_not_the_dataflows() {
        let away = way([200, 200, 200, 200, 200, 200, 100]);
        away[6].waiting("its server does not answer");
        assert_eq!(states(&away, 4 * SECOND, &ALIVE), [("home", StageState::StandsStill)]);
    }

    #[test]
    fn a_reason_is_told_at_once_and_becomes_a_standstill() {
        let waiting = way(LEVEL);
        waiting[1].waiting("connection refused");
        assert!(states(&waiting, SECOND, &[POSTGRESQL]).contains(&(STREAM, StageState::Waiting)));
        assert_eq!(states(&waiting, 4 * SECOND, &ALIVE), [(STREAM, StageState::StandsStill)]);
        waiting[1].held("a resync");
        assert_eq!(states(&waiting, 4 * SECOND, &ALIVE), [(STREAM, StageState::Waiting)]);
        waiting[1].goes_on();
        assert!(!states(&waiting, SECOND, &[POSTGRESQL]).contains(&(STREAM, StageState::Waiting)));
    }
}
