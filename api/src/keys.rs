//! Keys that sign tokens, and the tokens of signed-in users (JWT, RFC 7519).
//!
//! ```text
//!   file (0600)   kid secret      the first line signs
//!                 kid secret      every line verifies
//! ```
//!
//! Keys rotate without signing anybody out: a new line is put first, and the old one goes when the last token that it
//! signed has expired. The algorithm is pinned, so that no header of a token can choose a weaker one, and the key is
//! chosen by the token's `kid`, which must be one of ours.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, crypto};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

/// Who gives out the tokens.
const ISSUER: &str = "feedmill";
/// For whom they are.
const AUDIENCE: &str = "feedmill-api";
/// By how many seconds the clocks of instances may differ.
const LEEWAY_S: u64 = 30;
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
        "the key file {} can be read by others (mode {mode:o}); run `chmod 600` on it, or delete it to have a new one, \
         which signs everybody out",
        path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
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

/// The keys that sign tokens. Cheap to clone; `Debug` shows their names alone.
#[derive(Clone)]
pub struct Keys {
    keys: Arc<[Key]>,
    validation: Arc<Validation>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// The user's id.
    sub: String,
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
        let read = |source| KeysError::Read { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeysError::Exposed { path: path.to_owned(), mode });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let keys = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
            .map(|(index, line)| parse(line).ok_or_else(|| KeysError::Line { path: path.to_owned(), line: index + 1 }))
            .collect::<Result<Arc<[Key]>, _>>()?;
        if keys.is_empty() {
            return Err(KeysError::Empty { path: path.to_owned() });
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_S;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Ok(Keys { keys, validation: Arc::new(validation) })
    }

    /// A token that identifies `user` from now on for `session`; `None` if the library refuses to sign.
    pub fn token_for(&self, user: i64, session: Duration) -> Option<String> {
        let key = self.keys.first()?;
        let now = jsonwebtoken::get_current_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user.to_string(),
            iat: now,
            exp: now.saturating_add(session.as_secs()),
        };
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &key.encoding).ok()
    }

    /// The user whom `token` identifies.
    pub(crate) fn user_of(&self, token: &str) -> Result<i64, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused("it is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refused("its header cannot be read"))?;
        let kid = header.kid.ok_or(Refused("it names no key"))?;
        let key = self.keys.iter().find(|key| key.kid == kid).ok_or(Refused("it names an unknown key"))?;
        let token = jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation)
            .map_err(|_| Refused("its signature, issuer, audience or time does not hold"))?;
        token.claims.sub.parse().map_err(|_| Refused("its subject is no user"))
    }

    /// The authentication code of `message` by the first key: unpadded base64url.
    pub(crate) fn code(&self, message: &[u8]) -> Option<String> {
        crypto::sign(message, &self.keys.first()?.encoding, Algorithm::HS256).ok()
    }

    /// Whether `code` is that of `message` by any of the keys.
    pub(crate) fn confirms(&self, message: &[u8], code: &str) -> bool {
        let by = |key: &Key| crypto::verify(code, message, &key.decoding, Algorithm::HS256).unwrap_or(false);
        self.keys.iter().any(by)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
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
        jsonwebtoken::encode(header, claims, &keys.keys[0].encoding).unwrap()
    }

    fn header(keys: &Keys) -> Header {
        Header { kid: Some(keys.keys[0].kid.clone()), ..Header::new(Algorithm::HS256) }
    }

    fn claims() -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "7", "iat": now, "exp": now + 60 })
    }

    #[test]
    fn a_token_names_its_user() {
        let (_folder, keys) = keys();
        for user in [7, i64::MAX, i64::MIN] {
            assert_eq!(keys.user_of(&keys.token_for(user, HOUR).unwrap()).unwrap(), user);
        }
        assert_eq!(keys.user_of(&signed(&keys, &header(&keys), &claims())).unwrap(), 7);
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
            assert!(keys.user_of(&signed(&keys, &header(&keys), &claims)).is_err(), "{claims}");
        }
        for name in ["iss", "aud", "exp", "sub"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            assert!(keys.user_of(&signed(&keys, &header(&keys), &claims)).is_err(), "without {name}");
        }
    }

    #[test]
    fn a_token_by_another_key_or_algorithm_is_refused() {
        let (_folder, keys) = keys();
        let (_other_folder, other) = self::keys();
        let ours = header(&keys);
        assert!(keys.user_of(&signed(&other, &ours, &claims())).is_err(), "another's key under our name");
        assert!(keys.user_of(&other.token_for(7, HOUR).unwrap()).is_err(), "another's key");
        assert!(keys.user_of(&signed(&keys, &Header::new(Algorithm::HS256), &claims())).is_err(), "no kid");
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            let header = Header { alg: algorithm, ..ours.clone() };
            assert!(keys.user_of(&signed(&keys, &header, &claims())).is_err(), "{algorithm:?}");
        }
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let kid = &keys.keys[0].kid;
        for alg in ["none", "None", "NONE", "nOnE", "", "HS256 "] {
            let unsigned = format!("{}.{}.", encode(json!({ "alg": alg, "typ": "JWT", "kid": kid })), encode(claims()));
            assert!(keys.user_of(&unsigned).is_err(), "{alg}");
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
            assert!(keys.user_of(&altered).is_err(), "{altered:.80}");
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
        assert_eq!(after.user_of(&token).unwrap(), 7);
        assert!(after.confirms(b"message", &code) && !after.confirms(b"massage", &code));
        assert!(before.user_of(&after.token_for(7, HOUR).unwrap()).is_err(), "the new key signs");
        assert!(!before.confirms(b"message", &after.code(b"message").unwrap()));
    }

    #[test]
    fn the_file_is_for_its_owner_alone_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let keys = Keys::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let again = Keys::load_or_create(&path).unwrap();
        assert_eq!(again.user_of(&keys.token_for(7, HOUR).unwrap()).unwrap(), 7);
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
