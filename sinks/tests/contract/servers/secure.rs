//! Servers that speak by TLS alone, and let nobody in who does not sign in.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use feedmill_model::{Op, Parameters, RowSink, ViewRow};
use feedmill_sinks::cql::{CacheAges, CqlError, CqlReader, CqlSettings, CqlStores};
use feedmill_sinks::{ElasticOpenError, ElasticSearch, ElasticSettings, Views};
use feedmill_test_servers::{SecureCassandra, SecureElasticsearch};
use futures::executor::block_on;
use openssl::ssl::{SslConnector, SslMethod};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{CertificateParams, KeyPair};
use scylla::client::session::{OpenSsl010Config, Session};
use scylla::client::session_builder::SessionBuilder;

use super::cql::{RUNTIME, open, source};
use super::cql_reader::apply;
use crate::index::{ALL, closed, position, user};
use crate::search::{LIMIT, durable, found, put, tweet};

const PASSWORD: &str = "C@ssandra/s3cret?12";

/// Whom nobody has signed for.
fn stranger() -> String {
    let about = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    about.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// A file with this text.
fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A session of who may do everything, whom a node makes when it has run for a moment.
fn superuser(node: &SecureCassandra, authority: &PathBuf) -> Session {
    let (user, password) = SecureCassandra::SUPERUSER;
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut tls = SslConnector::builder(SslMethod::tls_client()).unwrap();
        tls.set_ca_file(authority).unwrap();
        let builder = SessionBuilder::new().known_node(node.address()).user(user, password);
        match RUNTIME.block_on(builder.tls_context(Some(OpenSsl010Config::new(tls))).build()) {
            Ok(session) => return session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_cluster_is_signed_in_to_by_tls_by_who_has_the_rights_that_are_documented() {
    let node = SecureCassandra::start();
    let folder = tempfile::tempdir().unwrap();
    let authority = file(&folder, "authority.pem", node.authority());
    let superuser = superuser(&node, &authority);
    let run = |text: &str| RUNTIME.block_on(superuser.query_unpaged(text, ())).map(drop).unwrap();
    for role in ["writer", "reader", "guest", "nobody"] {
        run(&format!("CREATE ROLE {role} WITH PASSWORD = '{PASSWORD}' AND LOGIN = true"));
    }
    run("GRANT CREATE ON ALL KEYSPACES TO writer");

    let address = |role: &str, password: &str, options: &str| {
        let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
        let address = format!("cql://{role}:{password}@{}/feeds?{options}", node.address());
        address.parse::<CqlSettings>().unwrap()
    };
    let trusted = format!("tls={}", authority.display());
    // Whoever makes the keyspace may do with it what it likes.
    let writer = address("writer", PASSWORD, &trusted);
    let stores = open(&writer, &Parameters::default());
    apply(&stores, 10, vec![], vec![Op::Put(ViewRow::Profile(Box::new(user(1))))]);
    drop(open(&writer, &Parameters::default()));

    run("GRANT SELECT ON KEYSPACE feeds TO reader");
    let ages = CacheAges { profiles: LIMIT, timelines: LIMIT };
    let reads = |settings| RUNTIME.block_on(CqlReader::open(settings, Parameters::default(), ages));
    let reader = reads(address("reader", PASSWORD, &trusted)).unwrap();
    assert!(block_on(async {
        let _runtime = RUNTIME.enter();
        reader.views().profiles(&[1]).await.unwrap()[0].is_some()
    }));

    // Where somebody else makes the keyspace nobody else has to be able to.
    run("CREATE KEYSPACE other WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}");
    run("GRANT ALL ON KEYSPACE other TO guest");
    let guest = CqlSettings { keyspace: "other".to_owned(), ..address("guest", PASSWORD, &trusted) };
    apply(&open(&guest, &Parameters::default()), 10, vec![], vec![]);

    let refused = |settings: CqlSettings, reason: &str| {
        let source = source();
        let opened = CqlStores::open(settings.clone(), &source, Parameters::default());
        let error: CqlError = RUNTIME.block_on(opened).err().unwrap();
        let told = format!("{error} {settings:?}");
        assert!(told.contains(reason), "{told} lacks {reason}");
        assert!(!told.contains(PASSWORD) && !told.contains("wrong s3cret"), "{told}");
    };
    refused(address("writer", "wrong s3cret", &trusted), "user and password, and TLS are those of the cluster");
    let other = file(&folder, "stranger.pem", &stranger());
    refused(address("writer", PASSWORD, &format!("tls={}", other.display())), "certificate verify failed");
    refused(address("writer", PASSWORD, "tls=off"), "and TLS are those of the cluster");
    // It is there, and not for everybody: that is no reason to make it.
    refused(address("nobody", PASSWORD, &trusted), "no SELECT permission");
    let unusable = file(&folder, "unusable.pem", "no certificate");
    refused(address("writer", PASSWORD, &format!("tls={}", unusable.display())), "no authority is trusted");
}

#[test]
fn a_search_server_is_signed_in_to_by_tls_by_who_has_the_rights_that_are_documented() {
    let node = SecureElasticsearch::start();
    let folder = tempfile::tempdir().unwrap();
    let settings = |password: &str, authority: &str| {
        let (user, password) = (SecureElasticsearch::USER, utf8_percent_encode(password, NON_ALPHANUMERIC));
        let address = format!("https://{user}:{password}@{}", node.address());
        let authority = Some(file(&folder, "authority.pem", authority));
        ElasticSettings { authority, ..ElasticSettings::new(address.parse().unwrap()) }
    };
    let own = folder.path().join("index");
    let right = || settings(SecureElasticsearch::PASSWORD, node.authority());
    let search = ElasticSearch::open(right(), &own, None).unwrap();
    search.apply(&closed(10, ALL, put([tweet(1, 1, "by a letter that is sealed")]))).unwrap();
    assert_eq!(durable(&search), Some(position(10)));
    assert_eq!(found(&search, "sealed"), [1]);
    drop(search);
    drop(ElasticSearch::open(right(), &own, None).unwrap());

    let refused = |settings: ElasticSettings, reason: &str| {
        let told = format!("{settings:?}");
        let error: ElasticOpenError = ElasticSearch::open(settings, &folder.path().join("other"), None).err().unwrap();
        let told = format!("{told} {error}");
        assert!(told.contains(reason), "{told} lacks {reason}");
        assert!(!told.contains("s3cret"), "{told}");
    };
    refused(settings("wrong s3cret", node.authority()), "401");
    refused(settings(SecureElasticsearch::PASSWORD, &stranger()), "certificate");
}
