/** The subprotocol by which a client offers to come back to its session: docs/resume.md has what follows from it. */
export const offer = 'portcullis.resume.v1';

const prefix = '\0portcullis '; // begins the messages between the gate and this library; JSON follows
const cost = 64; // what a message counts beside its bytes
const longestSilence = 600_000; // ms

/** The gate's first message. */
export interface First {
  session: string;
  resume?: string; // the token for the next return
  resumed: boolean;
  resumable: boolean;
  received: number; // how many of our messages it has taken
  beat: number; // seconds within which it speaks
  buffer: number; // bytes that may be unacknowledged
  expires: string | null;
  push?: string;
  limits?: { messages?: number; burst?: number; bytes?: number };
}

/** What the gate says to the library. */
export type Said = Partial<First> & { ack?: number };

/** Reads a message of the gate to the library; null: it is the application's. */
export function fromGate(data: unknown): Said | null {
  if (!isReserved(data)) return null;
  try {
    return JSON.parse((data as string).slice(prefix.length));
  } catch {
    return {};
  }
}

/** Whether a message begins as those between the gate and the library do. */
export function isReserved(data: unknown): boolean { return typeof data === 'string' && data.startsWith(prefix); }

interface Kept<T> { data: T; size: number }

/**
 * One resumable session, as its client keeps it: what was sent and not acknowledged, what has come, and the token by which it comes
 * back. It knows neither sockets nor timers.
 */
export class Resumption<T> {
  #first: First;
  #attempt = 0;
  #acked = 0; // how many of our messages the gate has acknowledged
  #kept: Kept<T>[] = []; // those after
  #sent = 0; // of kept, on this connection
  #open = 0; // bytes of those that were sent, as they count
  #count = 0; // how many messages have come
  #owed = 0; // of those that are not acknowledged,
  #owedBytes = 0;
  #owedSince = 0;
  #silences = 0; // connections given up in a row without a message of the application's
  #pace: Pace[];
  stale = 0; // how often in a row
  resumable = true; // the gate has room for it

  constructor(first: First) {
    this.#first = first;
    this.#pace = paces(first);
  }

  /** The entry of a return, for one attempt. */
  entry(): string {
    this.#attempt += 1;
    return `${offer}.${this.#first.resume}.${this.#count}.${this.#attempt}`;
  }

  /** The session goes on, on a new connection. */
  resume(first: First): void {
    this.#first = first;
    this.#attempt = this.stale = 0;
    this.#sent = first.received - this.#acked;
    this.#open = this.#kept.slice(0, this.#sent).reduce((sum, k) => sum + k.size + cost, 0);
  }

  /** Milliseconds of silence after which a connection is given up. */
  get patience(): number { return Math.min(2000 * this.#first.beat * 2 ** this.#silences, Math.max(longestSilence, 2000 * this.#first.beat)); }

  /** A connection is given up for its silence. */
  silent(): void { this.#silences += 1; }

  /** Bytes that have not been sent on any connection, or are to be sent again. */
  get waiting(): number { return this.#kept.slice(this.#sent).reduce((sum, k) => sum + k.size, 0); }

  /** All that is not acknowledged. */
  get unacknowledged(): T[] { return this.#kept.map((k) => k.data); }

  keep(data: T, size: number): void { this.#kept.push({ data, size }); }

  /** The next message to be sent; or how many milliseconds until it may be; or null, where there is none or the window is full. */
  next(now: number): { data: T } | number | null {
    const k = this.#kept[this.#sent];
    if (!k || this.#sent > 0 && this.#open + k.size + cost > this.#first.buffer) return null;
    const wait = Math.max(0, ...this.#pace.map((p) => p.wait(now)));
    if (wait > 0) return wait;
    for (const p of this.#pace) p.take(now, k.size);
    this.#sent += 1;
    this.#open += k.size + cost;
    return k;
  }

  /** The gate has so many messages. */
  acknowledge(n: number): void {
    const gone = this.#kept.splice(0, Math.max(0, n - this.#acked));
    this.#acked += gone.length;
    this.#sent -= gone.length;
    for (const k of gone) this.#open -= k.size + cost;
  }

  /** A message of the application's has come. It returns whether to acknowledge at once. */
  count(size: number, now: number): boolean {
    this.#silences = 0;
    this.#count += 1;
    this.#owed += 1;
    this.#owedBytes += size;
    this.#owedSince ||= now;
    return this.#owed >= 16 || this.#owedBytes >= Math.min(this.#first.buffer / 4, 65_536) || now - this.#owedSince >= 1000;
  }

  /** Whether something has come that is not acknowledged. */
  get owes(): boolean { return this.#owed > 0; }

  /** The acknowledgement of all that has come. */
  acknowledgement(): string {
    this.#owed = this.#owedBytes = this.#owedSince = 0;
    return `${prefix}{"ack":${this.#count}}`;
  }
}

/** A rate with a burst, as the gate counts it. Times are in milliseconds. */
class Pace {
  #next = 0; // when all that was taken would have been due
  constructor(readonly burst: number, readonly price: (size: number) => number) {}
  wait(now: number): number { return Math.max(0, this.#next - this.burst - now); }
  take(now: number, size: number): void { this.#next = Math.max(this.#next, now) + this.price(size); }
}

function paces({ limits = {} }: First): Pace[] {
  const all: Pace[] = [];
  const { messages, burst = 1, bytes } = limits;
  // A little less than the gate allows: what leaves here in time may arrive in a bunch.
  if (messages) all.push(new Pace(Math.max(0, burst - 2) * 1000 / messages, () => 1000 / messages));
  if (bytes) all.push(new Pace(500, (size) => size * 1000 / bytes));
  return all;
}
