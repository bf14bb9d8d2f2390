// One view of the monitor in an output.

import { Chart, happened, PLOTS } from './chart';
import type { Now } from './messages';
import { clock, element } from './said';
import type { Store, View } from './store';
import { Table } from './table';

const KEY: [string, string][] = [
  ['cell', 'cell'],
  ['failed', 'cell that failed'],
  ['snapshot', 'snapshot'],
  ['rollback', 'went back'],
  ['vm', 'VM began'],
  ['end', 'VM ended']
];

/** The width of the last view, for one that is drawn before it is in the page. */
let lastWidth = 0;
let views = 0;

export class MonitorView implements View {
  private readonly title = element('div', 'agentvm-title');
  private readonly banner = element('div', 'agentvm-banner');
  private readonly facts = element('div', 'agentvm-facts');
  private readonly note = element('div', 'agentvm-note');
  private readonly grid = element('div', 'agentvm-grid');
  private readonly answer = element('div', 'agentvm-answer');
  private readonly charts: Chart[];
  private readonly table: Table;
  private readonly seen: IntersectionObserver;
  private readonly size: ResizeObserver;
  private readonly theme: MutationObserver;
  private isInSight = false;
  private cursor: { time: number; near: number } | null = null;

  constructor(
    private readonly root: HTMLElement,
    private readonly store: Store
  ) {
    const sync = `agentvm-monitor-${views++}`;
    this.charts = PLOTS.map(
      plot =>
        new Chart(plot, sync, (time, near) => {
          this.cursor = time === null ? null : { time, near };
          this.tell();
        })
    );
    this.table = new Table(store);
    this.grid.append(...this.charts.map(chart => chart.node));
    root.classList.add('agentvm-monitor');
    root.append(this.title, this.banner, this.grid, this.note, key(), this.facts, this.answer, this.table.node);
    this.seen = new IntersectionObserver(entries => this.sight(entries[entries.length - 1].isIntersecting));
    this.size = new ResizeObserver(() => this.isInSight && this.draw());
    this.theme = new MutationObserver(() => this.isInSight && this.draw());
    this.seen.observe(root);
    this.size.observe(root);
    this.theme.observe(document.body, { attributes: true });
    store.views.add(this);
    this.draw();
  }

  close(): void {
    this.store.views.delete(this);
    this.seen.disconnect();
    this.size.disconnect();
    this.theme.disconnect();
    this.charts.forEach(chart => chart.destroy());
    this.store.look();
  }

  isSeen(): boolean {
    return this.isInSight && this.root.isConnected;
  }

  draw(): void {
    const { now, points, events } = this.store;
    this.head(now);
    const list = [...events.values()];
    const width = this.width();
    if (now && width > 0) {
      this.grid.classList.toggle('agentvm-waiting', points.length === 0);
      if (points.length) {
        this.charts.forEach(chart => chart.update(points, list, now, width));
      }
    }
    this.table.update();
    this.tell();
    this.root.dataset.news = String(this.store.number);
  }

  private sight(isInSight: boolean): void {
    this.isInSight = isInSight;
    if (isInSight) {
      this.draw();
    } else if (!this.root.isConnected) {
      this.charts.forEach(chart => chart.destroy()); // drawn anew if it comes back
    }
    this.store.look();
  }

  /** Returns the width of a plot, of which there are two beside each other where there is room. */
  private width(): number {
    lastWidth = this.root.clientWidth || lastWidth;
    const columns = lastWidth >= 640 ? 2 : 1;
    this.grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    return Math.floor((lastWidth - 16 - 16 * (columns - 1)) / columns);
  }

  private head(now: Now | null): void {
    const { store } = this;
    const texts: Record<Now['state'], string> = {
      running: 'running',
      held: now?.text || 'busy',
      starting: `starting: ${now?.text ?? ''}`,
      ended: 'ended'
    };
    this.title.replaceChildren(
      element('b', '', now?.vm ? `VM ${now.vm}` : 'VM'),
      element('span', `agentvm-state agentvm-state-${now?.state ?? 'none'}`, now ? texts[now.state] : 'waiting for the kernel'),
      element('span', 'agentvm-faint', now?.facts ?? ''),
      element('span', 'agentvm-measured', 'measured by the host')
    );
    this.banner.textContent = store.isSilent
      ? 'No news from the kernel: it does not run, or is not connected. Run %monitor again when it is back.'
      : now?.state === 'ended'
        ? `There is no VM: ${now.text}`
        : '';
    this.banner.hidden = !this.banner.textContent;
    this.facts.textContent = now
      ? `Connections: ${now.open} open, ${now.allowed} allowed, ${now.refused} refused by this VM` +
        (store.rows.size ? `; the newest ${store.rows.size}:` : '')
      : '';
    this.answer.textContent = store.said;
    this.answer.hidden = !store.said;
  }

  /** Says what happened under the cursor. */
  private tell(): void {
    const list = [...this.store.events.values()];
    const { cursor } = this;
    this.note.textContent = cursor
      ? `${clock(cursor.time)} ${happened(list, cursor.time, cursor.near)}`
      : 'The last ten minutes; the mouse on a plot shows values, cells and snapshots of that moment.';
  }
}

function key(): HTMLElement {
  const made = element('div', 'agentvm-key');
  for (const [kind, called] of KEY) {
    const entry = element('span');
    entry.append(element('i', `agentvm-key-${kind}`), element('span', '', called));
    made.append(entry);
  }
  return made;
}
