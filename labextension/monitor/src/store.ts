// What a page knows of the monitor: one store for all views of the model, kept up to date as long as one of them is seen.

import type { Answer, Event, Model, News, Now, Point, Row } from './messages';

/** Seconds between two signs of life; the host forgets a page after thirty. */
const SIGN = 10;
/** Seconds without news after which the views say so; while the VM runs there is news each second. */
const SILENCE = 15;
const POINTS = 600;
const EVENTS = 300;
const ROWS = 200;

export interface View {
  isSeen(): boolean;
  draw(): void;
}

export class Store {
  readonly page = Math.random().toString(36).slice(2) + Date.now().toString(36);
  readonly views = new Set<View>();
  points: Point[] = [];
  events = new Map<number, Event>();
  rows = new Map<string, Row>();
  allowed = new Map<string, number>();
  asked = new Set<string>();
  now: Now | null = null;
  said = '';
  /** Of the newest message. */
  number = 0;
  private heard = 0;
  private since = 0;
  private isWatching = false;
  private timer: ReturnType<typeof setInterval>;

  constructor(private readonly model: Model) {
    model.on('msg:custom', this.take);
    document.addEventListener('visibilitychange', this.look);
    this.timer = setInterval(this.tick, SIGN * 1000);
    this.say({ do: 'hello' });
  }

  close(): void {
    clearInterval(this.timer);
    document.removeEventListener('visibilitychange', this.look);
    this.model.off('msg:custom', this.take);
  }

  /** Whether the kernel should have said something and has not. */
  get isSilent(): boolean {
    return this.isWatching && Date.now() / 1000 - Math.max(this.heard, this.since) > SILENCE;
  }

  allow(key: string): void {
    this.asked.add(key);
    this.say({ do: 'allow', key });
    this.draw();
  }

  /** Tells the host whether anybody looks, when that changes. */
  readonly look = (): void => {
    const isSeen = document.visibilityState === 'visible' && [...this.views].some(view => view.isSeen());
    if (isSeen && !this.isWatching) {
      this.since = Date.now() / 1000;
      this.isWatching = true;
      this.watch();
    } else if (!isSeen && this.isWatching) {
      this.isWatching = false;
      this.say({ do: 'leave', page: this.page });
    }
  };

  private readonly tick = (): void => {
    this.look();
    if (this.isWatching) {
      this.watch();
      this.draw();
    }
  };

  private watch(): void {
    this.say({ do: 'watch', page: this.page, seen: this.number });
  }

  private say(content: object): void {
    try {
      this.model.send(content);
    } catch {
      // The kernel has been started anew: its comms are gone, and the views will say that nothing comes.
    }
  }

  private readonly take = (content: unknown): void => {
    this.heard = Date.now() / 1000;
    const message = content as News | Answer;
    if (message.is === 'answer') {
      this.answered(message);
    } else if (message.is === 'all') {
      this.points = [];
      this.events.clear();
      this.rows.clear();
      this.add(message);
    } else if (message.number === this.number + 1) {
      this.add(message);
    } else if (this.isWatching) {
      this.watch(); // something was missed: the host sends it all
    }
    this.draw();
  };

  private answered(answer: Answer): void {
    this.asked.delete(answer.key);
    this.said = answer.text;
    if (answer.allowed) {
      this.allowed.set(answer.allowed, answer.time);
    }
  }

  private add(news: News): void {
    this.number = news.number;
    this.now = news.now;
    this.points.push(...(news.points ?? []));
    this.points.splice(0, Math.max(this.points.length - POINTS, 0));
    for (const event of news.events ?? []) {
      this.events.set(event[0], event);
    }
    for (const row of news.connections ?? []) {
      this.rows.set(row[0], row);
    }
    drop(this.events, EVENTS);
    drop(this.rows, ROWS);
  }

  private draw(): void {
    for (const view of this.views) {
      if (view.isSeen()) {
        view.draw();
      }
    }
  }
}

function drop<K, V>(map: Map<K, V>, most: number): void {
  for (const key of map.keys()) {
    if (map.size <= most) {
      return;
    }
    map.delete(key);
  }
}
