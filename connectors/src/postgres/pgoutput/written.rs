//! Messages as the server writes them.

pub const INT8: u32 = 20;
pub const TEXT: u32 = 25;

pub fn relation(oid: u32, schema: &str, table: &str, columns: &[(u8, &str, u32)]) -> Vec<u8> {
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

pub fn tuple(kind: u8, values: &[Option<&[u8]>]) -> Vec<u8> {
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

pub fn message(kind: u8, oid: u32, tuples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(oid.to_be_bytes());
    bytes.extend(tuples.concat());
    bytes
}

/// The same message in a part of a transaction in progress: with the transaction's, or subtransaction's, number.
pub fn of(xid: u32, mut message: Vec<u8>) -> Vec<u8> {
    message.splice(1..1, xid.to_be_bytes());
    message
}

pub fn begin() -> Vec<u8> {
    [vec![b'B'], vec![0; 20]].concat()
}

pub fn commit(end: u64) -> Vec<u8> {
    [vec![b'C', 0], 0_u64.to_be_bytes().to_vec(), end.to_be_bytes().to_vec(), vec![0; 8]].concat()
}

pub fn stream_start(xid: u32) -> Vec<u8> {
    [vec![b'S'], xid.to_be_bytes().to_vec(), vec![0]].concat()
}

pub fn stream_stop() -> Vec<u8> {
    vec![b'E']
}

pub fn stream_commit(xid: u32, end: u64) -> Vec<u8> {
    let mut message = commit(end);
    message[0] = b'c';
    of(xid, message)
}

pub fn stream_abort(xid: u32, subxid: u32) -> Vec<u8> {
    [vec![b'A'], xid.to_be_bytes().to_vec(), subxid.to_be_bytes().to_vec()].concat()
}

/// The description of `blocks`.
pub fn blocks() -> Vec<u8> {
    relation(7, "public", "blocks", &[(1, "blocker_id", INT8), (1, "blocked_id", INT8)])
}

/// A new row of `blocks`.
pub fn insert_block(blocker_id: i64, blocked_id: i64) -> Vec<u8> {
    message(b'I', 7, &[tuple(b'N', &[Some(&blocker_id.to_be_bytes()), Some(&blocked_id.to_be_bytes())])])
}
