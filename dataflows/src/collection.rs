//! The collections and arrangements that jobs are made of.
//!
//! Every arrangement here is keyed by a user or a tweet and lives on the worker that owns the key's shard, so joins of
//! two of them, and the stores fed from them, need no further exchange.

use differential_dataflow::operators::ThresholdTotal;
use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::implementations::{
    ContainerChunker, KeyBatcher, KeyBuilder, KeySpine, ValBatcher, ValBuilder, ValSpine,
};
use differential_dataflow::trace::{Batch, BatchReader, TraceReader};
use differential_dataflow::{AsCollection, Data, ExchangeData, VecCollection};
use feedmill_model::{Time, shard_of};
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::Filter;

/// A collection that changes over time.
pub(crate) type Rows<'scope, D> = VecCollection<'scope, Time, D, isize>;

/// A collection of `(key, value)`, arranged by key.
pub(crate) type Index<'scope, V> = Arranged<'scope, TraceAgent<ValSpine<i64, V, Time, isize>>>;

/// A collection of keys, arranged.
pub(crate) type Set<'scope> = Arranged<'scope, TraceAgent<KeySpine<i64, Time, isize>>>;

/// Arranges by key, on the worker of the key's shard.
pub(crate) fn index<'scope, V: ExchangeData>(rows: Rows<'scope, (i64, V)>, name: &str) -> Index<'scope, V> {
    let exchange = Exchange::new(|((key, _), _, _): &((i64, V), Time, isize)| u64::from(shard_of(*key)));
    arrange_core::<_, _, ContainerChunker<_>, ValBatcher<_, _, _, _>, ValBuilder<_, _, _, _>, _>(
        rows.inner, exchange, name,
    )
}

/// Arranges keys, on the worker of the key's shard.
pub(crate) fn set<'scope>(keys: Rows<'scope, i64>, name: &str) -> Set<'scope> {
    let exchange = Exchange::new(|((key, ()), _, _): &((i64, ()), Time, isize)| u64::from(shard_of(*key)));
    arrange_core::<_, _, ContainerChunker<_>, KeyBatcher<_, _, _>, KeyBuilder<_, _, _>, _>(
        keys.map(|key| (key, ())).inner,
        exchange,
        name,
    )
}

/// Each key once, however often it is there.
pub(crate) fn distinct<'scope>(keys: Rows<'scope, i64>, name: &str) -> Rows<'scope, i64> {
    // Not `distinct_total`: it takes a key whose count has fallen to zero for one that is there.
    set(keys, name).threshold_total(|_, times| isize::from(*times > 0))
}

/// The rows of `index` whose key is not in `keys`.
pub(crate) fn without<'scope, V: ExchangeData>(
    rows: Rows<'scope, (i64, V)>,
    index: Index<'scope, V>,
    keys: Set<'scope>,
) -> Rows<'scope, (i64, V)> {
    let within = index.join_core(keys, |key, value, ()| Some((*key, value.clone())));
    rows.concat(within.negate())
}

/// Only the changes after `time`: for what feeds nothing but stores that have reached it.
pub(crate) fn after<D: Data>(rows: Rows<'_, D>, time: Time) -> Rows<'_, D> {
    if time == 0 {
        return rows;
    }
    rows.inner.filter(move |(_, at, _)| *at > time).as_collection()
}

/// `index` for a join of which nobody needs what it gives at or before `time`: that is not derived.
///
/// A join compares each batch that comes with what the other trace had before it. Here batches that lie at or before
/// `time` come without their rows, which stay in the trace: later batches of the other index find them there. Both sides
/// of the join must be quiet, and all batches that lie at or before `time` must have come to it before any other is made
/// (workers feed nothing beyond the load before it is applied). Then the join gives exactly what comes after `time`: of
/// two rows the later is in a batch that is whole, and finds the other.
pub(crate) fn quiet_until<'scope, Tr>(index: Arranged<'scope, Tr>, time: Time) -> Arranged<'scope, Tr>
where
    Tr: TraceReader<Time = Time, Batch: Batch> + 'static,
{
    let stream = index.stream.unary(Pipeline, "QuietUntil", move |_, _| {
        move |input, output| {
            input.for_each(|capability, batches| {
                for batch in batches.iter_mut() {
                    if batch.upper().first().is_some_and(|upper| *upper <= time.saturating_add(1)) {
                        *batch = Tr::Batch::empty(batch.lower().clone(), batch.upper().clone());
                    }
                }
                output.session(&capability).give_container(batches);
            });
        }
    });
    Arranged { stream, trace: index.trace }
}
