//! Messages as PostgreSQL 15 writes them, and as nobody should.

use feedmill_model::{Block, User};
use proptest::prelude::*;

use super::*;

const INT8: u32 = 20;
const TEXT: u32 = 25;

fn relation(oid: u32, schema: &str, table: &str, columns: &[(u8, &str, u32)]) -> Vec<u8> {
    let mut message = vec![b'R'];
    message.extend(oid.to_be_bytes());
    for name in [schema, table] {
        message.extend(name.bytes().chain([0]));
    }
    message.push(b'd');
    message.extend((columns.len() as u16).to_be_bytes());
    for (flags, name, type_oid) in columns {
        message.push(*flags);
        message.extend(name.bytes().chain([0]));
        message.extend(type_oid.to_be_bytes());
        message.extend([0xFF; 4]);
    }
    message
}

fn tuple(kind: u8, values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            None => bytes.push(b'n'),
            Some(b"unchanged") => bytes.push(b'u'),
            Some(value) => {
                bytes.push(b'b');
                bytes.extend((value.len() as u32).to_be_bytes());
                bytes.extend(*value);
            }
        }
    }
    bytes
}

fn message(kind: u8, oid: u32, tuples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(tuples.concat());
    bytes
}

fn blocks(decoder: &mut Decoder) {
    let columns = [(1, "blocker_id", INT8), (0, "reason", TEXT), (1, "blocked_id", INT8)];
    assert_eq!(decoder.decode(&relation(7, "public", "blocks", &columns)), Ok(Message::Other));
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
    assert_eq!(decoder.decode(&message(b'I', 7, std::slice::from_ref(&new))), Ok(Message::Insert(block(1, 2))));
    let update = |old_key| Ok(Message::Update { old_key, row: block(1, 2), unchanged: 0 });
    assert_eq!(decoder.decode(&message(b'U', 7, std::slice::from_ref(&new))), update(None));
    assert_eq!(decoder.decode(&message(b'U', 7, &[old.clone(), new])), update(Some(block(9, 2).key())));
    assert_eq!(decoder.decode(&message(b'D', 7, &[old])), Ok(Message::Delete(block(9, 2).key())));
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
        Ok(Message::Update { old_key: None, row: user(None), unchanged: 1 << 3 })
    );
    let mut old = values(b"long");
    old[0] = b'O';
    assert_eq!(
        decoder.decode(&message(b'U', 1, &[old, values(b"unchanged")])),
        Ok(Message::Update { old_key: None, row: user(Some("long")), unchanged: 0 })
    );
    assert!(decoder.decode(&message(b'I', 1, &[values(b"unchanged")])).is_err());
}

#[test]
fn a_table_that_cannot_be_read_is_named() {
    let decode = |columns: &[(u8, &str, u32)]| {
        Decoder::default().decode(&relation(7, "public", "blocks", columns)).expect_err("refused")
    };
    let (table, column) = ("blocks", "blocked_id");
    assert_eq!(decode(&[(1, "blocker_id", INT8)]), DecodeError::MissingColumn { table, column });
    assert_eq!(
        decode(&[(1, "blocker_id", INT8), (1, "blocked_id", TEXT)]),
        DecodeError::ColumnType { table, column, expected: "bigint", oid: TEXT }
    );
    assert_eq!(decode(&[(1, "blocker_id", INT8), (0, "blocked_id", INT8)]), DecodeError::ReplicaIdentity { table });
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
    assert_eq!(decoder.decode(&truncate), Ok(Message::Truncate(vec![Relation::Blocks])));
    assert!(matches!(decoder.decode(&message(b'I', 10, &[])), Err(DecodeError::Order(_))));
}

#[test]
fn every_beginning_of_a_message_is_too_short() {
    let mut decoder = Decoder::default();
    blocks(&mut decoder);
    let row = tuple(b'N', &[Some(&1_i64.to_be_bytes()), Some(b"spam"), Some(&2_i64.to_be_bytes())]);
    let commit = [vec![b'C', 0], vec![0; 24]].concat();
    for whole in [message(b'I', 7, &[row]), commit, relation(9, "public", "mutes", &[(1, "muter_id", INT8)])] {
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
                prop::sample::select(b"BCRIUDTYOMx".to_vec()),
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
