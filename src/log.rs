//! What is logged, where it goes, and what never gets there.
//!
//! ```text
//!   events ─┬─ --log ─────────► standard error   all but requests one by one
//!           └─ target access ─► --access-log     a line of JSON a request
//!   spans ──── target feedmill::trace ─► --otlp-endpoint
//! ```
//!
//! Some libraries log what goes through them, when all is to be logged: statements with their parameters, among which are
//! hashes of passwords; bodies of requests that could not be read, among which are passwords. What these log below
//! `info` is left out by a filter of its own, whatever `--log` asks for.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Metadata, Subscriber};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, Settings};

/// Target of the events of which the access log is made.
const ACCESS: &str = "access";
/// Target of the spans that are traced.
pub const TRACE: &str = "feedmill::trace";
/// Targets, those below them included, and the most of them that is logged on standard error: see above; what streams send is
/// for whom it is sent to; requests and traces have their own places.
const AT_MOST: [(&str, LevelFilter); 6] = [
    ("tokio_postgres", LevelFilter::INFO),
    ("axum::rejection", LevelFilter::INFO),
    ("h2", LevelFilter::INFO),
    ("tungstenite", LevelFilter::INFO),
    (ACCESS, LevelFilter::OFF),
    (TRACE, LevelFilter::OFF),
];

/// Keeps the log going. What has not been written yet is, when this is dropped.
pub struct Log {
    _access: Option<WorkerGuard>,
    traces: Option<SdkTracerProvider>,
}

impl Log {
    /// Starts to log as the settings say, for the whole process.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let filter = EnvFilter::try_new(&settings.log)
            .with_context(|| format!("--log is `{}`, which is not a filter such as `info`", settings.log))?;
        let filter = filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE));
        let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let console = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
        let console = match settings.log_format {
            LogFormat::Text => console.boxed(),
            LogFormat::Json => console.json().boxed(),
        };
        let (access, guard) = settings.access_log.as_deref().map(access_log).transpose()?.unzip();
        let provider = settings.otlp_endpoint.as_deref().map(|to| traces(to, settings.otlp_sample)).transpose()?;
        let traced = provider.as_ref().map(|provider| {
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("feedmill"));
            layer
                .with_location(false)
                .with_threads(false)
                .with_filter(Targets::new().with_target(TRACE, LevelFilter::TRACE))
        });
        tracing_subscriber::registry().with(console.with_filter(filter)).with(access).with(traced).init();
        Ok(Log { _access: guard, traces: provider })
    }
}

/// Whether something may be logged on standard error at all.
fn may_be_logged(of: &Metadata<'_>) -> bool {
    let is_within = |target: &str| {
        of.target().strip_prefix(target).is_some_and(|below| below.is_empty() || below.starts_with("::"))
    };
    !AT_MOST.iter().any(|(target, most)| is_within(target) && of.level() > most)
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.traces.as_ref().map(SdkTracerProvider::shutdown) {
            eprintln!("feedmill: the last traces could not be sent: {error}");
        }
    }
}

/// A layer that adds a line of JSON a request to the file, and what writes it. When the disk does not keep up, lines are
/// left out rather than requests delayed.
fn access_log<S>(path: &Path) -> anyhow::Result<(impl Layer<S> + use<S>, WorkerGuard)>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let file = File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("could not open {} of --access-log", path.display()))?;
    let (writer, guard) = tracing_appender::non_blocking(file);
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_span_events(FmtSpan::NONE)
        .with_level(false)
        .with_target(false)
        .with_timer(SystemTime)
        .with_writer(writer)
        .with_filter(Targets::new().with_target(ACCESS, LevelFilter::INFO));
    Ok((layer, guard))
}

/// What sends traces to `endpoint`, and of which requests.
fn traces(endpoint: &str, sample: f64) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("could not send traces to --otlp-endpoint {endpoint}"))?;
    // What proxies that are trusted send as the trace is gone on with.
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample))))
        .with_resource(Resource::builder().with_service_name("feedmill").build())
        .build())
}
