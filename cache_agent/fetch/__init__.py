"""Fetches files from sources into the store: a pure planner, and worker threads that execute its plan.

    thread "pull", one per Pull           threads "fetch-0" ... "fetch-N", shared by all pulls     "fetch-watchdog"
    +-----------------------------+       +---------------------------------------------------+    +----------------+
    | Resolver: resolve the name  |       | ConcurrencyLimiter admits the worker              |    | closes the     |
    | Fetcher: choose the root    |       | Job.next_work: one RangeRequest and its Source    |    | stream of a    |
    |  ModelFetch:                |  Job  | Source.open, then for each chunk in the response: |    | ReadProgress   |
    |   ReuseCheck stored files   |------>|   ChunkSink.receive: read, BLAKE3, write to the   |<---| that stalls,   |
    |   claim and open Downloads  |       |   partial, feed the InOrderHasher if it is next   |    | or is too slow |
    |   run a Job, blocking       |<------| ChunkSink.advance: hash chunks read back, commit  |    | when another   |
    |   reuse or refetch what     | error | Job.succeeded, or Job.failed: queue it again      |    | source is      |
    |   other Downloads brought   |       |   for another source                              |    | faster         |
    |  publish the model          |       |                                                   |    |                |
    +-----------------------------+       +---------------------------------------------------+    +----------------+

    A Puller starts Pulls. Callers hold the Pull, the handle: progress, wait, cancel. In its thread, ModelFetch (and
    ForeignFetch, for foreign images) uses its PullServices: progress, jobs, cancellation. Resolver and Fetcher serve
    all pulls and keep no state of any.

    object                    owner          state                                               guarded by
    Downloads                 node           the one running Download of each file and store     Downloads._lock
    LayerLocks                node           foreign layers being fetched                        LayerLocks._changed
    Puller                    node           the running Pulls                                   Puller._lock
    Pull                      its Puller     result, listeners at the end                        Pull._lock
    PullServices              its Pull       phase, progress, jobs: written by its thread only   none: see there
    FetchEngine               node           jobs, their priorities, ConcurrencyLimiter          FetchEngine._wake
    FetchedBytes              FetchEngine    bytes by source of jobs that ended                  FetchEngine._wake
    Job                       its Pull       FileQueues of RangeRequests, failures, rates        Job._lock
    Download (a ChunkSink)    its Pull       received, servable and lost chunks                  Download._lock
    InOrderHasher             its Download   sha256 state, next chunk, the lease to hash it      InOrderHasher._lock
    Partial (in the store)    its Download   data file and bitmap of verified chunks             Partial._lock
    ReadProgress              one worker     open stream and progress, read by the watchdog      none: see there

Lock order: FetchEngine._wake, then Job._lock. All but Partial's guard memory only: sources are read, chunks written and
files committed with no lock held. Workers never wait for each other: a chunk that arrives before its predecessors is
written, and the worker that later advances the hash to it reads it back.

foreign/ has the other ChunkSinks: the layers of foreign images, whose files have no chunk digests yet.
"""
