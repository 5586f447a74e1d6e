/** How long to wait before the next attempt; in milliseconds. */
export interface BackoffOptions {
  /** The longest wait before the second attempt. 500 if left out. */
  min?: number;
  /** The longest wait before any. 30,000 if left out. */
  max?: number;
  /** A connection that has lived for so long begins anew. 10,000 if left out. */
  steady?: number;
}

/**
 * Exponential back-off with full jitter: a random part of a bound that doubles. Clients that lost their connections in one moment
 * come back spread over the whole of it.
 */
export class Backoff {
  readonly #min: number;
  readonly #max: number;
  readonly #steady: number;
  #failures = 0;

  constructor({ min = 500, max = 30_000, steady = 10_000 }: BackoffOptions = {}) {
    this.#min = min;
    this.#max = max;
    this.#steady = steady;
  }

  /** How often in a row it has failed. */
  get failures(): number { return this.#failures; }

  /** How long to wait now, after a connection that lived for so long; 0: it never opened. */
  next(lived: number): number {
    if (lived >= this.#steady) this.#failures = 0;
    const bound = Math.min(this.#max, this.#min * 2 ** this.#failures);
    this.#failures += 1;
    return Math.random() * bound;
  }
}
