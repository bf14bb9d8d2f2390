// Lets something happen at once, and then not more often than a pause allows.

export interface Clock {
  now(): number;
  /** Calls once after some milliseconds; returns what calls it off. */
  after(milliseconds: number, call: () => void): () => void;
}

export const REAL: Clock = {
  now: () => Date.now(),
  after: (milliseconds, call) => {
    const timer = setTimeout(call, milliseconds);
    return () => clearTimeout(timer);
  }
};

export class Pace {
  private readonly call: () => void;
  private readonly pause: number;
  private readonly clock: Clock;
  private last = -Infinity;
  private callOff: (() => void) | null = null;

  constructor(call: () => void, pause: number, clock: Clock = REAL) {
    this.call = call;
    this.pause = pause;
    this.clock = clock;
  }

  /** Calls now, or at the end of the pause; what is asked for meanwhile is one call. */
  ask(): void {
    if (this.callOff) {
      return;
    }
    const wait = this.last + this.pause - this.clock.now();
    if (wait <= 0) {
      this.run();
    } else {
      this.callOff = this.clock.after(wait, () => {
        this.callOff = null;
        this.run();
      });
    }
  }

  stop(): void {
    this.callOff?.();
    this.callOff = null;
  }

  private run(): void {
    this.last = this.clock.now();
    this.call();
  }
}
