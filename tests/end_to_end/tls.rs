//! Every way to connect to PostgreSQL: `sslmode` against what the server is, and each way of logging in; with ordinary
//! sessions and in replication mode, which must always agree.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use feedmill_connectors::postgres::{Replication, ReplicationError, Source, SourceError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates::{Authority, Identity, file, switch_on};
use crate::postgres::Postgres;
use crate::system::LIMIT;

/// Whether a connection was encrypted, or the error.
type Outcome = Result<bool, String>;

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Connects in both ways; what they say of a failure is the same, and never holds the password.
async fn connect(address: &str) -> Outcome {
    let source: Source = address.parse().unwrap();
    let ordinary = match source.connect("test").await {
        Ok(client) => Ok(client.query_one(ENCRYPTED, &[]).await.unwrap().get::<_, bool>(0)),
        Err(error) => {
            assert!(!error.is_transient(), "{address}: {error}");
            Err((error.to_string(), matches!(error, SourceError::Tls { .. })))
        }
    };
    let replication = match Replication::connect(&source, "test").await {
        Ok(mut connection) => {
            let rows = connection.query(ENCRYPTED).await.unwrap();
            Ok(rows[0][0].as_deref() == Some("t"))
        }
        Err(error) => {
            assert!(!error.is_transient(), "{address}: {error}");
            let tls = matches!(error, ReplicationError::Source(SourceError::Tls { .. }));
            Err((error.to_string(), tls))
        }
    };
    match (&ordinary, &replication) {
        (Ok(one), Ok(other)) => assert_eq!(one, other, "{address}"),
        (Err((one, true)), Err((other, true))) => assert_eq!(one, other, "{address}"),
        (Err((_, false)), Err((_, false))) => {}
        _ => panic!("{address}: {ordinary:?} {replication:?}"),
    }
    // Each says it in its own words: what is common to both is looked for.
    let joined = match (ordinary, replication) {
        (Err((one, _)), Err((other, _))) => Err(format!("{one}\n{other}")),
        (Ok(encrypted), _) => Ok(encrypted),
        (Err((error, _)), Ok(_)) => Err(error),
    };
    assert!(joined.as_ref().err().is_none_or(|error| !error.contains("s3cret")), "{joined:?}");
    joined
}

#[track_caller]
fn expect(address: &str, outcome: &Outcome, expected: Result<bool, &str>) {
    let fits = match (outcome, expected) {
        (Ok(encrypted), Ok(expected)) => *encrypted == expected,
        (Err(error), Err(part)) => error.contains(part),
        _ => false,
    };
    assert!(fits, "{address}: {expected:?} was expected, and not {outcome:?}");
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const PLAIN: Result<bool, &str> = Ok(false);
const TLS: Result<bool, &str> = Ok(true);
const UNKNOWN: Result<bool, &str> = Err("is not by an authority in");
const OTHER_NAME: Result<bool, &str> = Err("is for localhost, not for 127.0.0.1");
const NO_ROOT: Result<bool, &str> = Err("sslrootcert=FILE");
const NO_TLS: Result<bool, &str> = Err("does not offer TLS");

/// Makes the server let in by these rules, and waits until it does.
async fn reloaded(postgres: &Postgres, rules: &[&str]) {
    let superuser = postgres.superuser("postgres").await;
    let loaded = "SELECT pg_conf_load_time()";
    let before: SystemTime = superuser.query_one(loaded, &[]).await.unwrap().get(0);
    postgres.authenticate(rules);
    postgres.reload();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let deadline = Instant::now() + LIMIT;
    while superuser.query_one(loaded, &[]).await.unwrap().get::<_, SystemTime>(0) == before {
        assert!(Instant::now() < deadline, "the server does not read its configuration");
        pause.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sslmode_against_every_server() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let good = file(folder.path(), "good.crt", &authority.certificate);
    let wrong = file(folder.path(), "wrong.crt", &other.certificate);
    let postgres = Postgres::new(&[]).await;
    let address = |host: &str, mode: &str, root: Option<&Path>| {
        let root = root.map_or_else(String::new, |root| format!(" sslrootcert={}", root.display()));
        format!("host={host} port={} user=feedmill dbname=feedmill sslmode={mode}{root}", postgres.port)
    };

    for (mode, expected) in MODES.into_iter().zip([PLAIN, PLAIN, PLAIN, NO_TLS, NO_TLS, NO_TLS]) {
        let address = address("localhost", mode, Some(&good));
        expect(&address, &connect(&address).await, expected);
    }

    switch_on(&postgres, &authority.sign("db", &["localhost"]), &authority);
    reloaded(&postgres, &["host all all 127.0.0.1/32 trust"]).await;
    for (host, root, expected) in [
        ("localhost", Some(&good), [PLAIN, PLAIN, TLS, TLS, TLS, TLS]),
        ("127.0.0.1", Some(&good), [PLAIN, PLAIN, TLS, TLS, TLS, OTHER_NAME]),
        ("localhost", Some(&wrong), [PLAIN, PLAIN, PLAIN, UNKNOWN, UNKNOWN, UNKNOWN]),
        ("localhost", None, [PLAIN, PLAIN, TLS, TLS, NO_ROOT, NO_ROOT]),
    ] {
        for (mode, expected) in MODES.into_iter().zip(expected) {
            let address = address(host, mode, root.map(|root| root.as_path()));
            expect(&address, &connect(&address).await, expected);
        }
    }
    // The first of two hosts does not answer, and the name of the second is the one that is compared.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (host, expected) in [("localhost", TLS), ("127.0.0.1", OTHER_NAME)] {
        let address = format!(
            "postgres://feedmill@127.0.0.1:{nobody},{host}:{}/feedmill?sslmode=verify-full&sslrootcert={}",
            postgres.port,
            good.display()
        );
        expect(&address, &connect(&address).await, expected);
    }
    // A socket of this machine carries no TLS, and needs none.
    let local =
        address(&postgres.socket().display().to_string(), "verify-full", None).replace("=feedmill", "=postgres");
    expect(&local, &connect(&local).await, PLAIN);

    // What one kind of connection is not let in for is tried with the other, where sslmode allows it.
    const REFUSED: Result<bool, &str> = Err("pg_hba.conf");
    for (rule, expected) in [("hostssl", [REFUSED, TLS, TLS, TLS]), ("hostnossl", [PLAIN, PLAIN, PLAIN, REFUSED])] {
        reloaded(&postgres, &[&format!("{rule} all all 127.0.0.1/32 trust")]).await;
        for (mode, expected) in MODES.into_iter().zip(expected) {
            let address = address("localhost", mode, None);
            expect(&address, &connect(&address).await, expected);
        }
    }

    // One that signed itself is trusted where it is its own authority, and its common name counts if it has no other.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut itself = rcgen::CertificateParams::new(Vec::new()).unwrap();
    itself.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    itself.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = itself.self_signed(&key).unwrap().pem();
    let root = file(folder.path(), "itself.crt", &certificate);
    let identity = Identity { certificate, key: key.serialize_pem() };
    switch_on(&postgres, &identity, &authority);
    reloaded(&postgres, &["host all all 127.0.0.1/32 trust"]).await;
    for (host, root, expected) in
        [("localhost", &root, TLS), ("127.0.0.1", &root, OTHER_NAME), ("localhost", &good, Err("certificate"))]
    {
        let address = address(host, "verify-full", Some(root));
        expect(&address, &connect(&address).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let postgres = Postgres::new(&[]).await;
    switch_on(&postgres, &authority.sign("db", &["localhost"]), &authority);
    let superuser = postgres.superuser("postgres").await;
    for (role, encryption) in
        [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "md5"), ("bare", "md5"), ("cert", "md5")]
    {
        // The no-break space becomes a space before it is hashed (SASLprep), and md5 hashes it as it is.
        superuser
            .batch_execute(&format!(
                "SET password_encryption = '{encryption}'; CREATE ROLE by_{role} LOGIN REPLICATION PASSWORD 's3cret ä\u{a0}';"
            ))
            .await
            .unwrap();
    }
    postgres.put("pg_ident.conf", "certificates ada by_cert\n");
    reloaded(
        &postgres,
        &[
            "host all by_scram 127.0.0.1/32 scram-sha-256",
            "host all by_md5 127.0.0.1/32 md5",
            "host all by_clear 127.0.0.1/32 password",
            "host all by_bare 127.0.0.1/32 trust",
            "hostssl all by_cert 127.0.0.1/32 cert map=certificates",
        ],
    )
    .await;
    let address = |role: &str, rest: &str| {
        format!("host=localhost port={} user=by_{role} dbname=feedmill password='s3cret ä\u{a0}' {rest}", postgres.port)
    };
    for (role, rest, expected) in [
        ("scram", "sslmode=disable", PLAIN),
        ("scram", "sslmode=require", TLS),
        ("scram", "sslmode=require channel_binding=require", TLS),
        ("scram", "sslmode=require channel_binding=disable", TLS),
        ("scram", "sslmode=disable channel_binding=require", Err("channel")),
        ("md5", "sslmode=disable", PLAIN),
        ("md5", "sslmode=require", TLS),
        ("md5", "sslmode=require channel_binding=require", Err("channel")),
        ("clear", "sslmode=require", TLS),
        ("clear", "sslmode=require channel_binding=require", Err("channel")),
        ("bare", "sslmode=require", TLS),
        ("bare", "sslmode=require channel_binding=require", Err("channel")),
        ("cert", "sslmode=require", Err("valid client certificate")),
    ] {
        let address = address(role, rest);
        expect(&address, &connect(&address).await, expected);
    }
    // In the clear over the network: never in replication mode.
    let source: Source = address("clear", "sslmode=disable").parse().unwrap();
    let error = Replication::connect(&source, "test").await.err().unwrap().to_string();
    assert!(error.contains("sslmode=require"), "{error}");
    for role in ["scram", "md5", "clear"] {
        let wrong = address(role, "sslmode=require").replace("ä\u{a0}", "");
        expect(&wrong, &connect(&wrong).await, Err("password authentication failed"));
    }

    // By a certificate: one of the right authority for the right user.
    for (by, user, expected) in [
        (&authority, "ada", TLS),
        (&authority, "eve", Err("certificate authentication failed")),
        (&other, "ada", Err("sslcert=FILE")),
    ] {
        let identity = by.sign(user, &[]);
        let certificate = file(folder.path(), "client.crt", &identity.certificate);
        let key = file(folder.path(), "client.key", &identity.key);
        let rest = format!("sslmode=require sslcert={} sslkey={}", certificate.display(), key.display());
        let address = address("cert", &rest);
        expect(&address, &connect(&address).await, expected);
    }

    // Without a password in the address: from the file, for this server, role and database.
    let line = format!("localhost:{}:feedmill:by_scram:s3cret ä\u{a0}\n", postgres.port);
    let passfile = file(folder.path(), "pgpass", &line);
    for (role, expected) in [("scram", TLS), ("md5", Err("password"))] {
        let address = format!(
            "host=localhost port={} user=by_{role} dbname=feedmill sslmode=require passfile={}",
            postgres.port,
            passfile.display()
        );
        expect(&address, &connect(&address).await, expected);
    }
}

/// The algorithms that Feedmill uses: there are others among the dependencies.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Accepts clients with a certificate.
fn acceptor(own: &Identity) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let mut accept = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    accept.alpn_protocols = vec![b"postgresql".to_vec()];
    TlsAcceptor::from(Arc::new(accept))
}

/// Stands between clients and a server with a certificate of its own, and hands on what either says.
async fn in_the_middle(server: u16, authority: &Authority, own: &Identity) -> u16 {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
    let connect = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (accept, connect) = (acceptor(own), TlsConnector::from(Arc::new(connect)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (accept, connect) = (accept.clone(), connect.clone());
            tokio::spawn(async move {
                // The question for TLS goes on to the server as it is, and its answer back.
                let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                let mut question = [0; 8];
                client.read_exact(&mut question).await?;
                server.write_all(&question).await?;
                client.write_u8(server.read_u8().await?).await?;
                let mut client = accept.accept(client).await?;
                let mut server = connect.connect("localhost".try_into().unwrap(), server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

/// Takes TLS at once, without being asked before, and hands on in the clear. PostgreSQL does so itself from 17 on.
async fn at_once(server: u16, own: &Identity) -> u16 {
    let accept = acceptor(own);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let accept = accept.clone();
            tokio::spawn(async move {
                let mut client = accept.accept(client).await?;
                let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_can_begin_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let postgres = Postgres::new(&[]).await;
    let port = at_once(postgres.port, &authority.sign("db", &["localhost"])).await;
    // What the server itself sees is not encrypted: that ends before it.
    for (authority, expected) in [(&authority, PLAIN), (&other, UNKNOWN)] {
        let root = file(folder.path(), "root.crt", &authority.certificate);
        let address = format!(
            "host=localhost port={port} user=feedmill dbname=feedmill sslmode=verify-full sslnegotiation=direct \
             sslrootcert={}",
            root.display()
        );
        expect(&address, &connect(&address).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_bound_to_the_certificate_does_not_pass_through_a_third_party() {
    let authority = Authority::new();
    let postgres = Postgres::new(&[]).await;
    switch_on(&postgres, &authority.sign("db", &["localhost"]), &authority);
    postgres.role("ada", "LOGIN REPLICATION PASSWORD 's3cret'").await;
    reloaded(&postgres, &["hostssl all ada 127.0.0.1/32 scram-sha-256"]).await;
    let third = in_the_middle(postgres.port, &authority, &Authority::new().sign("db", &["localhost"])).await;
    // Nobody looks at the certificate, so that all depends on the login.
    for (binding, expected) in
        [("disable", TLS), ("prefer", Err("channel binding")), ("require", Err("channel binding"))]
    {
        let address = format!(
            "host=localhost port={third} user=ada dbname=feedmill password=s3cret sslmode=require \
             channel_binding={binding}"
        );
        expect(&address, &connect(&address).await, expected);
    }
}
