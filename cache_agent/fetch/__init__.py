"""Fetches files from sources into the store: a pure planner, and worker threads that execute its plan.

    thread "pull", one per Pull           threads "fetch-0" ... "fetch-N", shared by all pulls     "fetch-watchdog"
    +-----------------------------+       +---------------------------------------------------+    +----------------+
    | Pull: resolve the name      |       | ConcurrencyLimiter admits the worker              |    | closes the     |
    | ReuseCheck the stored files |       | Job.next_work: one RangeRequest and its Source    |    | stream of a    |
    | claim and open Downloads    |  Job  | Source.open, then for each chunk in the response: |    | Transfer that  |
    | planner: FileQueues         |------>|   ChunkSink.receive: read, BLAKE3, write to the   |<---| stalls, or is  |
    | Engine.run(job), blocking   |       |   partial, feed the InOrderHasher if it is next   |    | too slow when  |
    | reuse or refetch what other |<------| ChunkSink.advance: hash chunks read back, commit  |    | another source |
    |   pulls' Downloads brought  | error | Job.succeeded, or Job.failed: queue it again      |    | is faster      |
    | publish the model           |       |   for another source                              |    |                |
    +-----------------------------+       +---------------------------------------------------+    +----------------+

    object                    owner          state                                               guarded by
    Downloads                 Puller (node)  the one running Download of each file and store     Downloads._lock
    Pull                      its thread     phase, counters, result; listeners at the end       Pull._lock (listeners)
    Engine                    node           jobs, their priorities, ConcurrencyLimiter          Engine._wake
    Job                       its Pull       FileQueues of RangeRequests, failures, rates        Job._lock
    Download (a ChunkSink)    its Pull       received, servable and lost chunks                  Download._lock
    InOrderHasher             its Download   sha256 state, next chunk, the lease to hash it      InOrderHasher._lock
    Partial (in the store)    its Download   data file and bitmap of verified chunks             Partial._lock
    Transfer                  one worker     open stream and progress, read by the watchdog      none: see Transfer

Lock order: Engine._wake, then Job._lock. All but Partial's guard memory only: sources are read, chunks written and
files committed with no lock held. Workers never wait for each other: a chunk that arrives before its predecessors is
written, and the worker that later advances the hash to it reads it back.

foreign/ has the other ChunkSinks: the layers of foreign images, whose files have no chunk digests yet.
"""
