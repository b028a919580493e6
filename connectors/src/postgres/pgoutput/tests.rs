//! Messages as PostgreSQL 15 writes them, and as nobody should.

use feedmill_model::{Block, Row, User};
use proptest::prelude::*;

use super::super::Field;
use super::written::{
    INT8, TEXT, commit, message, of, relation, stream_abort, stream_commit, stream_start, stream_stop, tuple,
};
use super::*;

fn blocks(decoder: &mut Decoder) {
    let columns = [(1, "blocker_id", INT8), (0, "reason", TEXT), (1, "blocked_id", INT8)];
    assert_eq!(decoder.decode(&relation(7, "public", "blocks", &columns)), Ok(Message::Other));
}

/// What is changed outside of a part of a transaction in progress.
fn changed(change: RowChange) -> Result<Message, DecodeError> {
    Ok(Message::Change { xid: 0, change })
}

const fn block(blocker_id: i64, blocked_id: i64) -> Row {
    Row::Block(Block { blocker_id, blocked_id })
}

#[test]
fn columns_are_found_by_name_and_others_are_passed_over() {
    let mut decoder = Decoder::default();
    blocks(&mut decoder);
    let new = tuple(b'N', &[Some(&1_i64.to_be_bytes()), Some(b"spam"), Some(&2_i64.to_be_bytes())]);
    let old = tuple(b'K', &[Some(&9_i64.to_be_bytes()), None, Some(&2_i64.to_be_bytes())]);
    assert_eq!(decoder.decode(&message(b'I', 7, std::slice::from_ref(&new))), changed(RowChange::Insert(block(1, 2))));
    let update = |old_key| changed(RowChange::Update { old_key, row: block(1, 2), unchanged: 0 });
    assert_eq!(decoder.decode(&message(b'U', 7, std::slice::from_ref(&new))), update(None));
    assert_eq!(decoder.decode(&message(b'U', 7, &[old.clone(), new])), update(Some(block(9, 2).key())));
    assert_eq!(decoder.decode(&message(b'D', 7, &[old])), changed(RowChange::Delete(block(9, 2).key())));
}

#[test]
fn unchanged_columns_are_marked_or_taken_from_a_full_old_row() {
    let columns: Vec<(u8, &str, u32)> = Relation::Users
        .columns()
        .iter()
        .zip([INT8, TEXT, TEXT, TEXT, TEXT, 16, 16, 1184, 1184, 1184])
        .map(|(name, oid)| (u8::from(*name == "id"), *name, oid))
        .collect();
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&relation(1, "public", "users", &columns)), Ok(Message::Other));
    let (id, time) = (5_i64.to_be_bytes(), i64::MAX.to_be_bytes());
    let values = |bio: &'static [u8]| -> Vec<u8> {
        let all: [Option<&[u8]>; 10] = [
            Some(&id),
            Some(b"ada"),
            Some(b"Ada"),
            Some(bio),
            None,
            Some(&[1]),
            Some(&[0]),
            Some(&time),
            Some(&time),
            None,
        ];
        tuple(b'N', &all)
    };
    let user = |bio: Option<&str>| {
        let (username, display_name) = ("ada".to_owned(), "Ada".to_owned());
        let (created_at, updated_at) = (i64::MAX, i64::MAX);
        let bio = bio.map(str::to_owned);
        Row::User(Box::new(User {
            id: 5,
            username,
            display_name,
            bio,
            verified: true,
            created_at,
            updated_at,
            ..User::default()
        }))
    };
    assert_eq!(
        decoder.decode(&message(b'U', 1, &[values(b"unchanged")])),
        changed(RowChange::Update { old_key: None, row: user(None), unchanged: 1 << 3 })
    );
    let mut old = values(b"long");
    old[0] = b'O';
    assert_eq!(
        decoder.decode(&message(b'U', 1, &[old, values(b"unchanged")])),
        changed(RowChange::Update { old_key: None, row: user(Some("long")), unchanged: 0 })
    );
    assert!(decoder.decode(&message(b'I', 1, &[values(b"unchanged")])).is_err());
}

/// What a row of `blocks` gives when the table has these columns, and now has those of `tables`.
fn row_of(columns: &[(u8, &str, u32)], tables: &[(&str, u32)]) -> Message {
    let tables = tables.iter().map(|(name, oid)| ((*name).to_owned(), *oid)).collect();
    let mut decoder = Decoder::new(Tables::from_iter([(Relation::Blocks, tables)]));
    assert_eq!(decoder.decode(&relation(7, "public", "blocks", columns)), Ok(Message::Other));
    let values: Vec<[u8; 8]> = (1..=columns.len() as i64).map(i64::to_be_bytes).collect();
    let values: Vec<Option<&[u8]>> = values.iter().map(|value| Some(value.as_slice())).collect();
    decoder.decode(&message(b'I', 7, &[tuple(b'N', &values)])).expect("a message")
}

#[test]
fn a_table_that_cannot_be_read_is_named_when_a_row_comes() {
    let error = |columns: &[(u8, &str, u32)]| match row_of(columns, &[]) {
        Message::Unreadable { xid: 0, error } => error,
        other => panic!("{other:?}"),
    };
    let (table, column, expected) = ("blocks", "blocked_id", "bigint");
    assert_eq!(error(&[(1, "blocker_id", INT8)]), DecodeError::MissingColumn { table, column, expected });
    assert_eq!(
        error(&[(1, "blocker_id", INT8), (1, "blocked_id", TEXT)]),
        DecodeError::ColumnType { table, column, expected, oid: TEXT }
    );
    assert_eq!(error(&[(1, "blocker_id", INT8), (0, "blocked_id", INT8)]), DecodeError::ReplicaIdentity { table });
}

#[test]
fn a_column_that_was_renamed_and_renamed_back_is_found_by_its_place() {
    let then = [(1, "blocker_id", INT8), (0, "note", INT8), (1, "target", INT8)];
    let read = Message::Change { xid: 0, change: RowChange::Insert(block(1, 3)) };
    let now = [("blocker_id", INT8), ("note", INT8), ("blocked_id", INT8)];
    assert_eq!(row_of(&then, &now), read);
    // Anything else that is not the same leaves it open what the column is.
    for now in [
        &[("blocker_id", INT8), ("note", INT8), ("target", INT8)][..],
        &[("blocker_id", INT8), ("note", INT8), ("blocked_id", TEXT)],
        &[("blocker_id", INT8), ("remark", INT8), ("blocked_id", INT8)],
        &[("blocker_id", INT8), ("blocked_id", INT8)],
        &[("blocker_id", INT8), ("note", INT8), ("target", INT8), ("blocked_id", INT8)],
    ] {
        assert!(matches!(row_of(&then, now), Message::Unreadable { .. }), "{now:?}");
    }
}

#[test]
fn a_row_with_unusable_values_is_told_with_what_can_be_read() {
    let mut decoder = Decoder::default();
    blocks(&mut decoder);
    let (one, short) = (1_i64.to_be_bytes(), [0_u8; 3]);
    let new = tuple(b'N', &[Some(&one), None, Some(&short)]);
    let old = tuple(b'K', &[Some(&9_i64.to_be_bytes()), None, Some(&one)]);
    let unusable = |operation, old_key| {
        let columns = vec![
            ("blocker_id".to_owned(), Field::Text("1".to_owned())),
            ("blocked_id".to_owned(), Field::Bytes(short.to_vec())),
        ];
        let reason = "a value of blocks.blocked_id has the wrong length".to_owned();
        let relation = Relation::Blocks;
        changed(RowChange::Unusable(Box::new(Unusable { relation, operation, key: None, old_key, columns, reason })))
    };
    let decoded = decoder.decode(&message(b'I', 7, std::slice::from_ref(&new)));
    assert_eq!(decoded, unusable(Operation::Insert, None));
    let decoded = decoder.decode(&message(b'U', 7, &[old, new.clone()]));
    assert_eq!(decoded, unusable(Operation::Update, Some(block(9, 1).key())));
    let mut gone = new;
    gone[0] = b'K';
    assert_eq!(decoder.decode(&message(b'D', 7, &[gone])), unusable(Operation::Delete, None));
}

/// Inserts into `blocks`, and what the columns are called in its description.
fn describe(first: &str, second: &str) -> Vec<u8> {
    relation(7, "public", "blocks", &[(1, first, INT8), (1, second, INT8)])
}

#[test]
fn a_transaction_in_progress_has_descriptions_of_its_own() {
    let (straight, crossed) = (describe("blocker_id", "blocked_id"), describe("blocked_id", "blocker_id"));
    let row = written::insert_block(1, 2);
    let read = |decoder: &mut Decoder, xid: u32, message: Vec<u8>| match decoder.decode(&message) {
        Ok(Message::Change { xid: of, change: RowChange::Insert(row) }) if of == xid => row,
        other => panic!("{other:?}"),
    };
    // Whether the transaction commits, and whether the table is described again before it does.
    for (commits, again) in [(false, false), (true, false), (true, true)] {
        let mut decoder = Decoder::default();
        let tell = |decoder: &mut Decoder, message: Vec<u8>| decoder.decode(&message).expect("a message");
        tell(&mut decoder, straight.clone());
        tell(&mut decoder, stream_start(5));
        tell(&mut decoder, of(6, crossed.clone()));
        assert_eq!(read(&mut decoder, 6, of(6, row.clone())), block(2, 1));
        tell(&mut decoder, stream_stop());
        assert_eq!(read(&mut decoder, 0, row.clone()), block(1, 2));
        if again {
            tell(&mut decoder, straight.clone());
        }
        tell(&mut decoder, if commits { stream_commit(5, 1) } else { stream_abort(5, 5) });
        let now = if commits && !again { block(2, 1) } else { block(1, 2) };
        assert_eq!(read(&mut decoder, 0, row.clone()), now);
    }
}

#[test]
fn parts_of_transactions_begin_and_end_in_turn() {
    let refused = |messages: &[Vec<u8>]| {
        let mut decoder = Decoder::default();
        let last = messages.iter().map(|message| decoder.decode(message)).last();
        assert!(matches!(last, Some(Err(DecodeError::Order(_)))), "{last:?}");
    };
    refused(&[stream_stop()]);
    refused(&[stream_start(1), stream_start(1)]);
    refused(&[stream_start(1), written::begin()]);
    // Nothing is known of a table that only another transaction has described.
    refused(&[written::blocks(), stream_start(1), of(1, written::insert_block(1, 2))]);
}

#[test]
fn tables_of_others_are_skipped() {
    let mut decoder = Decoder::default();
    blocks(&mut decoder);
    assert_eq!(decoder.decode(&relation(8, "audit", "blocks", &[(1, "x", TEXT)])), Ok(Message::Other));
    assert_eq!(decoder.decode(&relation(9, "public", "orders", &[])), Ok(Message::Other));
    let row = tuple(b'N', &[Some(b"?")]);
    assert_eq!(decoder.decode(&message(b'I', 8, &[row])), Ok(Message::Other));
    let mut truncate = vec![b'T', 0, 0, 0, 2, 0];
    truncate.extend([8_u32, 7].map(u32::to_be_bytes).concat());
    assert_eq!(decoder.decode(&truncate), Ok(Message::Truncate { xid: 0, relations: vec![Relation::Blocks] }));
    assert!(matches!(decoder.decode(&message(b'I', 10, &[])), Err(DecodeError::Order(_))));
}

#[test]
fn every_beginning_of_a_message_is_too_short() {
    let mut decoder = Decoder::default();
    blocks(&mut decoder);
    let row = tuple(b'N', &[Some(&1_i64.to_be_bytes()), Some(b"spam"), Some(&2_i64.to_be_bytes())]);
    let whole = [message(b'I', 7, &[row]), commit(1), stream_start(1), stream_commit(1, 2), stream_abort(1, 2)];
    for whole in whole.into_iter().chain([relation(9, "public", "mutes", &[(1, "muter_id", INT8)])]) {
        for length in 0..whole.len() {
            let kind = if length == 0 { '?' } else { char::from(whole[0]) };
            assert_eq!(decoder.decode(&whole[..length]), Err(DecodeError::Truncated { kind }), "{length}");
        }
    }
}

proptest! {
    /// Whatever comes: a message or an error, and the decoder still works.
    #[test]
    fn no_input_panics(
        messages in prop::collection::vec(
            (
                prop::sample::select(b"BCRIUDTYOMxSEcA".to_vec()),
                prop_oneof![Just(7_u32), any::<u32>()],
                prop::collection::vec(
                    prop_oneof![
                        prop::sample::select(b"NKOnubt".to_vec()),
                        prop::sample::select(vec![0, 1, 3, 8]),
                        any::<u8>(),
                    ],
                    0..80,
                ),
            ),
            1..20,
        )
    ) {
        let mut decoder = Decoder::default();
        blocks(&mut decoder);
        for (kind, oid, rest) in messages {
            let mut bytes = vec![kind];
            bytes.extend(oid.to_be_bytes());
            bytes.extend(rest);
            let _ = decoder.decode(&bytes);
        }
        blocks(&mut decoder);
    }
}
