//! Keys that sign tokens, and the tokens of signed-in users (JWT, RFC 7519).
//!
//! ```text
//!   file (0600)   kid secret      the first line signs
//!                 kid secret      every line verifies
//! ```
//!
//! Keys rotate without signing anybody out: a new line is put last, where it verifies, and first once all instances have
//! it; the old one goes when the last token that it signed has expired. A file that has changed is read again while the process runs; one that cannot be read as a whole
//! leaves the keys as they were. The algorithm is pinned, so that no header of a token can choose a weaker one, and the key is
//! chosen by the token's `kid`, which must be one of ours. Where keys have the same name, any of them will do.
//!
//! A token that the API gives out names a session, with which it ends. One that an operator makes of the key file names
//! none, and holds until it expires.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, crypto};
use parking_lot::RwLock;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

/// Who gives out the tokens.
const ISSUER: &str = "feedmill";
/// For whom they are.
const AUDIENCE: &str = "feedmill-api";
/// By how many seconds the clocks of instances may differ.
pub(crate) const LEEWAY_S: u64 = 30;
/// No token of ours is longer.
const TOKEN_BYTES_MAX: usize = 1_024;
/// Bytes of a secret: as many as the hash of HS256 puts out.
const SECRET_BYTES: usize = 32;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file could not be made.
    #[error("could not make the key file {}: {source}", path.display())]
    Create {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("could not read the key file {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Others can read the file.
    #[error(
        "the key file {} can be read by others (mode {mode:o}); run `chmod 600` on it (640 if another user owns it, as of a \
         mounted secret)",
        path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no file, and whoever shares it with others makes it.
    #[error(
        "there is no key file {}: all instances share one, which is made by `(umask 077; echo \"$(date +%FT%T) $(head -c 32 \
         /dev/urandom | basenc --base64url | tr -d =)\" > FILE)`, or is the file `keys` in the folder of a `feedmill up`",
        path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A line is not a key. What it holds is secret, so it is not repeated.
    #[error(
        "line {line} of the key file {} is not `<name> <secret>`, with a secret of at least 32 bytes as unpadded \
         base64url",
        path.display()
    )]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The file has no key.
    #[error("the key file {} holds no key; delete it to have a new one, which signs everybody out", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
}

/// A token does not identify anybody. Why is for the log alone.
#[derive(Debug, thiserror::Error)]
#[error("the token is refused: {0}")]
pub(crate) struct Refused(&'static str);

struct Key {
    kid: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// The keys that sign tokens. Cheap to clone, and then the same; `Debug` shows their names alone.
#[derive(Clone)]
pub struct Keys {
    file: Arc<File>,
    validation: Arc<Validation>,
}

/// A file of keys, and what was read from it.
struct File {
    path: PathBuf,
    read: RwLock<Read>,
}

/// What a file held, and when it was written.
#[derive(Clone)]
struct Read {
    keys: Arc<[Key]>,
    written: Written,
}

/// When a file was written, and how long it is: one that was replaced differs in either.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Written(SystemTime, u64);

/// Whom a token identifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// The user.
    pub user: i64,
    /// The session that the token is of; `None` for one that an operator made.
    pub session: Option<i64>,
    /// When it was signed, in seconds since 1970.
    pub signed_at: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The user's id.
    sub: String,
    /// The session's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<i64>,
    /// Seconds since 1970.
    iat: u64,
    /// Seconds since 1970.
    exp: u64,
}

impl Keys {
    /// Reads the keys in the file; makes the file, for the owner alone, with one new key where there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, KeysError> {
        if !path.exists() {
            create(path).map_err(|source| KeysError::Create { path: path.to_owned(), source })?;
        }
        Keys::load(path)
    }

    /// Reads the keys in a file that is there.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        if !path.exists() {
            return Err(KeysError::Missing { path: path.to_owned() });
        }
        let read = read(path)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_S;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let file = File { path: path.to_owned(), read: RwLock::new(read) };
        Ok(Keys { file: Arc::new(file), validation: Arc::new(validation) })
    }

    /// Reads the file again if it was written since; says whether it was. After an error the keys are as they were.
    pub(crate) fn refresh(&self) -> Result<bool, KeysError> {
        let file = &self.file;
        let before = file.read.read().written;
        let written = written(&file.path).map_err(|source| KeysError::Read { path: file.path.clone(), source })?;
        if written == before {
            return Ok(false);
        }
        *file.read.write() = read(&file.path)?;
        Ok(true)
    }

    /// The keys as they are now.
    fn now(&self) -> Arc<[Key]> {
        Arc::clone(&self.file.read.read().keys)
    }

    /// A token of the operator's own, which identifies `user` from now on for `lifetime` and is of no session; `None` if the
    /// library refuses to sign.
    pub fn token_for(&self, user: i64, lifetime: Duration) -> Option<String> {
        self.sign(user, None, lifetime)
    }

    /// A token that identifies `user` from now on for `lifetime`, unless `session` ends before.
    pub(crate) fn session_token(&self, user: i64, session: i64, lifetime: Duration) -> Option<String> {
        self.sign(user, Some(session), lifetime)
    }

    fn sign(&self, user: i64, sid: Option<i64>, lifetime: Duration) -> Option<String> {
        let keys = self.now();
        let key = keys.first()?;
        let now = jsonwebtoken::get_current_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user.to_string(),
            sid,
            iat: now,
            exp: now.saturating_add(lifetime.as_secs()),
        };
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &key.encoding).ok()
    }

    /// Whom `token` identifies.
    pub(crate) fn bearer_of(&self, token: &str) -> Result<Bearer, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused("it is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refused("its header cannot be read"))?;
        let kid = header.kid.ok_or(Refused("it names no key"))?;
        let keys = self.now();
        let mut by_key = keys
            .iter()
            .filter(|key| key.kid == kid)
            .map(|key| jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation))
            .peekable();
        if by_key.peek().is_none() {
            return Err(Refused("it names an unknown key"));
        }
        let token =
            by_key.find_map(Result::ok).ok_or(Refused("its signature, issuer, audience or time does not hold"))?;
        let user = token.claims.sub.parse().map_err(|_| Refused("its subject is no user"))?;
        let (signed_at, expires) = (token.claims.iat, token.claims.exp);
        Ok(Bearer { user, session: token.claims.sid, signed_at, expires })
    }

    /// The authentication code of `message` by the first key: unpadded base64url.
    pub(crate) fn code(&self, message: &[u8]) -> Option<String> {
        crypto::sign(message, &self.now().first()?.encoding, Algorithm::HS256).ok()
    }

    /// Whether `code` is that of `message` by any of the keys.
    pub(crate) fn confirms(&self, message: &[u8], code: &str) -> bool {
        let by = |key: &Key| crypto::verify(code, message, &key.decoding, Algorithm::HS256).unwrap_or(false);
        self.now().iter().any(by)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.now().iter().map(|key| &key.kid)).finish()
    }
}

fn written(path: &Path) -> io::Result<Written> {
    let file = std::fs::metadata(path)?;
    Ok(Written(file.modified()?, file.len()))
}

/// Reads a file of keys. When it was written is looked up first, so that what is written meanwhile is read again.
fn read(path: &Path) -> Result<Read, KeysError> {
    let failed = |source| KeysError::Read { path: path.to_owned(), source };
    let written = written(path).map_err(failed)?;
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    // What is mounted belongs to somebody else, and to a group that we are of.
    let forbidden = if metadata.uid() == nix::unistd::geteuid().as_raw() { 0o077 } else { 0o037 };
    if mode & forbidden != 0 {
        return Err(KeysError::Exposed { path: path.to_owned(), mode });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let keys = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|(index, line)| parse(line).ok_or_else(|| KeysError::Line { path: path.to_owned(), line: index + 1 }))
        .collect::<Result<Arc<[Key]>, _>>()?;
    if keys.is_empty() {
        return Err(KeysError::Empty { path: path.to_owned() });
    }
    Ok(Read { keys, written })
}

fn parse(line: &str) -> Option<Key> {
    let (kid, secret) = line.trim().split_once(' ')?;
    let secret = URL_SAFE_NO_PAD.decode(secret.trim()).ok().filter(|secret| secret.len() >= SECRET_BYTES)?;
    Some(Key {
        kid: kid.to_owned(),
        encoding: EncodingKey::from_secret(&secret),
        decoding: DecodingKey::from_secret(&secret),
    })
}

/// Makes the file whole or not at all. When two processes do so at the same time, the first one's stands.
fn create(path: &Path) -> io::Result<()> {
    let random = |bytes: &mut [u8]| OsRng.try_fill_bytes(bytes).map_err(io::Error::other);
    let (mut kid, mut secret) = ([0; 6], [0; SECRET_BYTES]);
    random(&mut kid)?;
    random(&mut secret)?;
    let kid = URL_SAFE_NO_PAD.encode(kid);
    let fresh = path.with_extension(format!("new-{kid}"));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written = writeln!(file, "# These keys sign tokens: the first signs, all verify. Whoever has one is anybody.")
        .and_then(|()| writeln!(file, "{kid} {}", URL_SAFE_NO_PAD.encode(secret)))
        .and_then(|()| file.sync_all())
        .and_then(|()| match std::fs::hard_link(&fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    std::fs::remove_file(&fresh)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn keys() -> (tempfile::TempDir, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(&folder.path().join("keys")).unwrap();
        (folder, keys)
    }

    /// A token with these claims, signed by the first key, as if it were one of ours.
    fn signed(keys: &Keys, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &keys.now()[0].encoding).unwrap()
    }

    fn header(keys: &Keys) -> Header {
        Header { kid: Some(keys.now()[0].kid.clone()), ..Header::new(Algorithm::HS256) }
    }

    fn claims() -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "7", "iat": now, "exp": now + 60 })
    }

    #[test]
    fn a_token_names_its_user() {
        let (_folder, keys) = keys();
        for user in [7, i64::MAX, i64::MIN] {
            assert_eq!(keys.bearer_of(&keys.token_for(user, HOUR).unwrap()).unwrap().user, user);
        }
        assert_eq!(keys.bearer_of(&signed(&keys, &header(&keys), &claims())).unwrap().user, 7);
    }

    #[test]
    fn a_token_with_other_claims_is_refused() {
        let (_folder, keys) = keys();
        let changes: [(&str, Value); 7] = [
            ("iss", json!("someone")),
            ("aud", json!("another-api")),
            ("exp", json!(1_000_000)),
            ("sub", json!("root")),
            ("sub", json!(7)),
            ("exp", json!("never")),
            ("iat", json!("long ago")),
        ];
        for (name, value) in changes {
            let mut claims = claims();
            claims[name] = value;
            assert!(keys.bearer_of(&signed(&keys, &header(&keys), &claims)).is_err(), "{claims}");
        }
        for name in ["iss", "aud", "exp", "sub"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            assert!(keys.bearer_of(&signed(&keys, &header(&keys), &claims)).is_err(), "without {name}");
        }
    }

    #[test]
    fn a_token_by_another_key_or_algorithm_is_refused() {
        let (_folder, keys) = keys();
        let (_other_folder, other) = self::keys();
        let ours = header(&keys);
        assert!(keys.bearer_of(&signed(&other, &ours, &claims())).is_err(), "another's key under our name");
        assert!(keys.bearer_of(&other.token_for(7, HOUR).unwrap()).is_err(), "another's key");
        assert!(keys.bearer_of(&signed(&keys, &Header::new(Algorithm::HS256), &claims())).is_err(), "no kid");
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            let header = Header { alg: algorithm, ..ours.clone() };
            assert!(keys.bearer_of(&signed(&keys, &header, &claims())).is_err(), "{algorithm:?}");
        }
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let kid = keys.now()[0].kid.clone();
        for alg in ["none", "None", "NONE", "nOnE", "", "HS256 "] {
            let unsigned = format!("{}.{}.", encode(json!({ "alg": alg, "typ": "JWT", "kid": kid })), encode(claims()));
            assert!(keys.bearer_of(&unsigned).is_err(), "{alg}");
        }
    }

    #[test]
    fn a_token_that_was_altered_is_refused() {
        let (_folder, keys) = keys();
        let token = keys.token_for(7, HOUR).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let forged = URL_SAFE_NO_PAD.encode(claims.replace("\"7\"", "\"8\""));
        for altered in [
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}.{}", parts[2]),
            format!("{token}A"),
            token[1..].to_owned(),
            String::new(),
            "..".to_owned(),
            "a.b.c".to_owned(),
            "é.é.é".to_owned(),
            "A".repeat(1 << 20),
        ] {
            assert!(keys.bearer_of(&altered).is_err(), "{altered:.80}");
        }
    }

    #[test]
    fn keys_rotate_without_signing_anybody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let before = Keys::load_or_create(&path).unwrap();
        let token = before.token_for(7, HOUR).unwrap();
        let code = before.code(b"message").unwrap();
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("new {}\n{old}", URL_SAFE_NO_PAD.encode([7; SECRET_BYTES]))).unwrap();
        let after = Keys::load_or_create(&path).unwrap();
        assert_eq!(after.bearer_of(&token).unwrap().user, 7);
        assert!(after.confirms(b"message", &code) && !after.confirms(b"massage", &code));
        assert!(before.bearer_of(&after.token_for(7, HOUR).unwrap()).is_err(), "the new key signs");
        assert!(!before.confirms(b"message", &after.code(b"message").unwrap()));

        // Those that are in use take the file over as it is now, and keep what they have while it cannot be read.
        let running = before.clone();
        assert!(before.refresh().unwrap() && !before.refresh().unwrap());
        assert_eq!(running.bearer_of(&after.token_for(7, HOUR).unwrap()).unwrap().user, 7);
        std::fs::write(&path, "half a li").unwrap();
        assert!(before.refresh().is_err() && before.refresh().is_err());
        assert_eq!(running.bearer_of(&token).unwrap().user, 7);
        std::fs::write(&path, format!("{old}\n")).unwrap();
        assert!(before.refresh().unwrap());
        assert!(running.bearer_of(&after.token_for(7, HOUR).unwrap()).is_err());
    }

    #[test]
    fn keys_of_one_name_verify_what_each_has_signed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let with = |secrets: &[u8]| {
            let lines = secrets.iter().map(|n| format!("2026-11-22 {}\n", URL_SAFE_NO_PAD.encode([*n; SECRET_BYTES])));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            Keys::load_or_create(&path).unwrap()
        };
        let tokens = [1, 2, 3].map(|n| with(&[n]).token_for(7, HOUR).unwrap());
        let rotated_twice = with(&[3, 2]);
        assert!(rotated_twice.bearer_of(&tokens[0]).is_err());
        assert!(tokens[1..].iter().all(|token| rotated_twice.bearer_of(token).is_ok_and(|bearer| bearer.user == 7)));
    }

    #[test]
    fn a_token_of_a_session_names_it_and_one_of_the_operator_none() {
        let (_folder, keys) = keys();
        let bearer = keys.bearer_of(&keys.session_token(7, i64::MAX, HOUR).unwrap()).unwrap();
        assert_eq!((bearer.user, bearer.session), (7, Some(i64::MAX)));
        assert!(bearer.signed_at.abs_diff(jsonwebtoken::get_current_timestamp()) < 60);
        assert_eq!(keys.bearer_of(&keys.token_for(7, HOUR).unwrap()).unwrap().session, None);
    }

    #[test]
    fn the_file_is_for_its_owner_alone_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let keys = Keys::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let again = Keys::load_or_create(&path).unwrap();
        assert_eq!(again.bearer_of(&keys.token_for(7, HOUR).unwrap()).unwrap().user, 7);
        let text = std::fs::read_to_string(&path).unwrap();
        let secret = text.lines().last().unwrap().split(' ').nth(1).unwrap();
        assert!(!format!("{keys:?}").contains(secret));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Keys::load_or_create(&path), Err(KeysError::Exposed { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "# none\n\n").unwrap();
        assert!(matches!(Keys::load_or_create(&path), Err(KeysError::Empty { .. })));
        std::fs::write(&path, "short c2hvcnQ\n").unwrap();
        let error = Keys::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeysError::Line { line: 1, .. }) && !error.to_string().contains("c2hvcnQ"));
    }
}
