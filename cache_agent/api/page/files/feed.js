// Reads server-sent events by fetch, which, unlike EventSource, can send a token. Comes again by itself where it was.

const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;
// Without a word for three of the server's beats the connection is dead, whatever the browser thinks of it.
const SILENCE = 45000;

// Text in, events out: the grammar of server-sent events, over any division into pieces.
export class Parser {
  constructor() { this.rest = ""; this.searched = 0; this.clear(); }

  clear() { this.kind = ""; this.data = []; }

  push(text) {
    this.rest += text;
    const events = [];
    for (;;) {
      const end = this.rest.indexOf("\n", this.searched);
      if (end < 0) { this.searched = this.rest.length; return events; }
      const line = this.rest.slice(0, end).replace(/\r$/, "");
      this.rest = this.rest.slice(end + 1);
      this.searched = 0;
      const event = this.line(line);
      if (event) events.push(event);
    }
  }

  line(line) {
    if (line === "") {
      const event = this.data.length ? { kind: this.kind || "message", id: this.id, data: this.data.join("\n") } : null;
      this.clear();
      return event;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.kind = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id") this.id = value;
    return null;
  }
}

// `on` has `event(kind, data)`, `live()`, `lost(seconds, why)` and `refused(why)`; after that, `start` begins anew.
export class Feed {
  constructor(url, on) { this.url = url; this.on = on; this.lastId = ""; this.turn = 0; }

  start(token) {
    this.token = token;
    this.turn += 1;
    this.abort?.abort();
    this.run(this.turn);
  }

  async run(turn) {
    let wait = FIRST_WAIT;
    while (turn === this.turn) {
      let why = "";
      try {
        const answer = await this.read(turn, () => { wait = FIRST_WAIT; });
        if (answer.refused) {
          if (turn === this.turn) this.on.refused(answer.why);
          return;
        }
        why = answer.why;
        if (answer.ended) wait = FIRST_WAIT;
      } catch (error) {
        why = "The connection was lost.";
      }
      if (turn !== this.turn) return;
      this.on.lost(wait / 1000, why);
      await new Promise((go) => setTimeout(go, wait));
      wait = Math.min(LONGEST_WAIT, wait * 2);
    }
  }

  async read(turn, began) {
    const headers = { Accept: "text/event-stream" };
    // Not in Authorization: the API server's proxy takes that one for itself and doesn't pass it on.
    if (this.token) headers["Weightyard-Token"] = this.token;
    if (this.lastId) headers["Last-Event-ID"] = this.lastId;
    const abort = this.abort = new AbortController();
    let alarm = setTimeout(() => abort.abort(), SILENCE);
    try {
      const answer = await fetch(this.url, { headers, signal: abort.signal, cache: "no-store", credentials: "same-origin" });
      if (!answer.ok) {
        const said = await answer.json().then((found) => String(found.error ?? ""), () => "");
        return { refused: answer.status === 401 || answer.status === 403, why: said || `The server answers ${answer.status}.`, status: answer.status };
      }
      began();
      if (turn === this.turn) this.on.live();
      const parser = new Parser();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return { ended: true, why: "" };
        clearTimeout(alarm);
        alarm = setTimeout(() => abort.abort(), SILENCE);
        for (const event of parser.push(value)) {
          if (turn !== this.turn) return { ended: true, why: "" };
          this.on.event(event.kind, JSON.parse(event.data));
          this.lastId = event.id ?? this.lastId;
        }
      }
    } finally {
      clearTimeout(alarm);
      abort.abort();
    }
  }
}
