//! Transactions whole and in progress, put together as a naive model does.

use feedmill_model::{Block, Relation, Row};
use proptest::prelude::*;

use super::super::super::pgoutput::written::{
    INT8, begin, blocks, commit, insert_block, message, of, relation, stream_abort, stream_commit, stream_start,
    stream_stop, tuple,
};
use super::*;

fn assembly(memory_bytes: usize) -> Assembly {
    let spilling = Spilling { memory_bytes, ..Spilling::to(std::env::temp_dir()) };
    let mut assembly = Assembly::new(Decoder::default(), spilling, Lsn(100));
    assert!(assembly.add(&blocks()).expect("a description").is_none());
    assembly
}

/// The position and the changes of the transaction, if the message completes one.
fn add(assembly: &mut Assembly, message: Vec<u8>) -> Option<(u64, Vec<RowChange>)> {
    add_but_for(assembly, message, &HashSet::new())
}

/// The same without these subtransactions.
fn add_but_for(assembly: &mut Assembly, message: Vec<u8>, rolled_back: &HashSet<u32>) -> Option<(u64, Vec<RowChange>)> {
    let committed = assembly.add(&message).expect("a message in its place")?;
    let asked: HashSet<u32> = committed.subtransactions().into_iter().filter(|sub| rolled_back.contains(sub)).collect();
    let (transaction, _) = assembly.complete(committed, &asked).expect("changes that can be read");
    let changes = transaction.changes.chunks().flat_map(|chunk| chunk.expect("readable").into_owned());
    Some((transaction.end_lsn.0, changes.collect()))
}

fn block(number: i64) -> RowChange {
    RowChange::Insert(Row::Block(Block { blocker_id: number, blocked_id: 0 }))
}

#[test]
fn a_keepalive_is_told_between_transactions_and_never_goes_back() {
    let mut assembly = assembly(1 << 20);
    assert_eq!(assembly.keepalive(Lsn(90)), Some(Lsn(100)));
    assert_eq!(add(&mut assembly, begin()), None);
    assert_eq!(assembly.keepalive(Lsn(110)), None);
    assert_eq!(add(&mut assembly, commit(120)), Some((120, vec![])));
    assert_eq!(assembly.keepalive(Lsn(110)), Some(Lsn(120)));
    assert_eq!(assembly.keepalive(Lsn(130)), Some(Lsn(130)));
    // What is in progress does not hold it back.
    assert_eq!(add(&mut assembly, stream_start(5)), None);
    assert_eq!(assembly.keepalive(Lsn(140)), Some(Lsn(140)));
    assert_eq!(add(&mut assembly, stream_stop()), None);
    assert_eq!(assembly.keepalive(Lsn(150)), Some(Lsn(150)));
    assert_eq!(add(&mut assembly, stream_commit(5, 160)), Some((160, vec![])));
    assert_eq!(assembly.keepalive(Lsn(150)), Some(Lsn(160)));
}

#[test]
fn messages_out_of_order_are_refused() {
    let refused = |messages: &[Vec<u8>]| {
        let mut assembly = assembly(1 << 20);
        let (last, first) = messages.split_last().expect("a message");
        for message in first {
            assembly.add(message).expect("a message in its place");
        }
        let last = assembly.add(last);
        assert!(matches!(last, Err(ReplicationError::Decode(DecodeError::Order(_)))), "{last:?}");
    };
    refused(&[commit(1)]);
    refused(&[begin(), begin()]);
    refused(&[insert_block(1, 2)]);
    refused(&[stream_commit(5, 1)]);
    refused(&[stream_start(5), stream_stop(), stream_commit(5, 1), stream_commit(5, 2)]);
}

#[test]
fn a_table_that_cannot_be_read_matters_only_if_its_change_is_committed() {
    let unreadable = [
        of(6, relation(7, "public", "blocks", &[(1, "blocker_id", INT8)])),
        of(6, message(b'I', 7, &[tuple(b'N', &[Some(&1_i64.to_be_bytes())])])),
    ];
    let start = |assembly: &mut Assembly| {
        for message in
            [stream_start(5), of(5, blocks()), of(5, insert_block(1, 0))].into_iter().chain(unreadable.clone())
        {
            assert_eq!(add(assembly, message), None);
        }
    };
    let mut assembly = assembly(0);
    start(&mut assembly);
    for message in [stream_stop(), stream_abort(5, 6), stream_start(5), of(8, blocks()), of(8, insert_block(2, 0))] {
        assert_eq!(add(&mut assembly, message), None);
    }
    assert_eq!(add(&mut assembly, stream_stop()), None);
    assert_eq!(add(&mut assembly, stream_commit(5, 9)), Some((9, vec![block(1), block(2)])));

    start(&mut assembly);
    // A later subtransaction that is rolled back does not cure it.
    for message in [of(9, blocks()), of(9, insert_block(2, 0)), stream_stop(), stream_abort(5, 9)] {
        assert_eq!(add(&mut assembly, message), None);
    }
    let committed = assembly.add(&stream_commit(5, 10)).expect("a message in its place").expect("a commit");
    let error = assembly.complete(committed, &HashSet::new()).expect_err("it cannot be read").to_string();
    assert!(error.contains("blocked_id"), "{error}");

    start(&mut assembly);
    // That it was rolled back is known at the commit only.
    for message in [of(5, blocks()), of(5, insert_block(2, 0)), stream_stop()] {
        assert_eq!(add(&mut assembly, message), None);
    }
    let committed = add_but_for(&mut assembly, stream_commit(5, 11), &HashSet::from([6]));
    assert_eq!(committed, Some((11, vec![block(1), block(2)])));
}

/// What a transaction does, by its place among several.
#[derive(Clone, Debug)]
enum Step {
    /// It changes a row, so many times.
    Change(u8),
    Truncate,
    Savepoint,
    /// Back to the savepoint that many levels up; whether the server tells it of each, by its bits.
    RollBack(u8, u8),
    Release,
    Commit,
    Abort,
    /// Another client's transaction, sent whole.
    Other(u8),
}

fn steps() -> impl Strategy<Value = Vec<(u32, Step)>> {
    let step = prop_oneof![
        8 => (1..30_u8).prop_map(Step::Change),
        1 => Just(Step::Truncate),
        4 => Just(Step::Savepoint),
        3 => (0..3_u8, prop_oneof![Just(u8::MAX), any::<u8>()]).prop_map(|(levels, told)| Step::RollBack(levels, told)),
        3 => Just(Step::Release),
        2 => Just(Step::Commit),
        1 => Just(Step::Abort),
        2 => (0..30_u8).prop_map(Step::Other),
    ];
    prop::collection::vec((0..3_u32, step), 1..80)
}

/// A transaction as a client has it: changes, each with the savepoints that it stands behind.
#[derive(Default)]
struct Naive {
    xid: u32,
    savepoints: Vec<u32>,
    changes: Vec<(Vec<u32>, RowChange)>,
    rolled_back: HashSet<u32>,
}

/// The source: numbers for everything that needs one, and transactions that run beside each other.
struct World {
    assembly: Assembly,
    number: u32,
    open: [Naive; 3],
}

impl World {
    fn next(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    fn part(&mut self, xid: u32, sub: u32, messages: impl IntoIterator<Item = Vec<u8>>) {
        let messages = messages.into_iter().map(|message| of(sub, message));
        for message in [stream_start(xid), of(sub, blocks())].into_iter().chain(messages).chain([stream_stop()]) {
            assert_eq!(add(&mut self.assembly, message), None);
        }
    }

    fn step(&mut self, client: u32, step: Step) {
        let at = client as usize;
        if self.open[at].xid == 0 {
            self.open[at] = Naive { xid: self.next(), ..Naive::default() };
        }
        let (xid, sub) = (self.open[at].xid, *self.open[at].savepoints.last().unwrap_or(&self.open[at].xid));
        match step {
            Step::Change(count) => {
                let numbers: Vec<i64> = (0..count).map(|_| i64::from(self.next())).collect();
                self.part(xid, sub, numbers.iter().map(|number| insert_block(*number, 0)));
                let open = &mut self.open[at];
                let behind = open.savepoints.clone();
                open.changes.extend(numbers.into_iter().map(|number| (behind.clone(), block(number))));
            }
            Step::Truncate => {
                self.part(xid, sub, [[vec![b'T', 0, 0, 0, 1, 0], 7_u32.to_be_bytes().to_vec()].concat()]);
                let open = &mut self.open[at];
                open.changes.push((open.savepoints.clone(), RowChange::Truncate(Relation::Blocks)));
            }
            Step::Savepoint => {
                let savepoint = self.next();
                self.open[at].savepoints.push(savepoint);
            }
            Step::RollBack(levels, told) => {
                let open = &mut self.open[at];
                let Some(keep) = open.savepoints.len().checked_sub(usize::from(levels) + 1) else { return };
                let gone = open.savepoints.split_off(keep)[0];
                // The server tells each that changed anything, released ones too: those inside before those around. It may
                // forget it of some.
                let rolled_back = open.changes.extract_if(.., |(behind, _)| behind.contains(&gone));
                let mut subs: Vec<u32> = rolled_back.filter_map(|(behind, _)| behind.last().copied()).collect();
                subs.sort_unstable_by_key(|sub| (*sub == gone, *sub));
                subs.dedup();
                open.rolled_back.extend(&subs);
                for (n, sub) in subs.into_iter().enumerate() {
                    if told >> (n % 8) & 1 == 1 {
                        assert_eq!(add(&mut self.assembly, stream_abort(xid, sub)), None);
                    }
                }
            }
            Step::Release => {
                self.open[at].savepoints.pop();
            }
            Step::Commit | Step::Abort => {
                let Naive { changes, rolled_back, .. } = std::mem::take(&mut self.open[at]);
                self.part(xid, xid, []);
                if matches!(step, Step::Abort) {
                    assert_eq!(add(&mut self.assembly, stream_abort(xid, xid)), None);
                    return;
                }
                let end = u64::from(self.next());
                let changes = changes.into_iter().map(|(_, change)| change).collect();
                let committed = add_but_for(&mut self.assembly, stream_commit(xid, end), &rolled_back);
                assert_eq!(committed, Some((end, changes)));
            }
            Step::Other(count) => {
                assert_eq!(add(&mut self.assembly, begin()), None);
                let numbers: Vec<i64> = (0..count).map(|_| i64::from(self.next())).collect();
                for number in &numbers {
                    assert_eq!(add(&mut self.assembly, insert_block(*number, 0)), None);
                }
                let end = u64::from(self.next());
                let changes = numbers.into_iter().map(block).collect();
                assert_eq!(add(&mut self.assembly, commit(end)), Some((end, changes)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However transactions and rolled back savepoints are mixed, each commit gives what its client meant, in memory
    /// and on disk, and afterwards nothing is left.
    #[test]
    fn any_mixture_is_put_together(steps in steps(), memory in prop::sample::select(vec![0_usize, 3_000, 1 << 20])) {
        let mut world = World { assembly: assembly(memory), number: 0, open: Default::default() };
        for (client, step) in steps {
            world.step(client, step);
            // What is known of subtransactions cannot go to disk.
            let held: usize = world.assembly.streamed.values().map(Open::held_bytes).sum();
            prop_assert!(world.assembly.memory <= memory || held == 0);
        }
        for client in 0..3 {
            world.step(client, Step::Commit);
        }
        prop_assert!(world.assembly.streamed.is_empty() && world.assembly.memory == 0);
    }
}
