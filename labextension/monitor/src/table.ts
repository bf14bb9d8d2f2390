// The connections: the newest above, each with what the policy has said, and a button where that can be changed.

import type { Row } from './messages';
import { clock, element, said } from './said';
import type { Store } from './store';

const HEAD = ['time', 'cell', 'host', 'port', 'verdict', 'sent', 'received', 'duration', 'why', ''];

export class Table {
  readonly node = element('div', 'agentvm-connections');
  private readonly body = element('tbody');
  private readonly empty = element('div', 'agentvm-empty', 'No connection has been asked for yet.');
  private readonly lines = new Map<string, { line: HTMLTableRowElement; shown: string }>();

  constructor(private readonly store: Store) {
    const table = element('table');
    const head = element('thead');
    const titles = element('tr');
    titles.append(...HEAD.map(title => element('th', '', title)));
    head.append(titles);
    table.append(head, this.body);
    this.node.append(table, this.empty);
  }

  update(): void {
    const rows = [...this.store.rows.values()].reverse().sort((one, other) => other[1] - one[1]);
    this.empty.hidden = rows.length > 0;
    const gone = new Set(this.lines.keys());
    rows.forEach((row, place) => {
      gone.delete(row[0]);
      const line = this.line(row);
      if (this.body.children[place] !== line) {
        this.body.insertBefore(line, this.body.children[place] ?? null);
      }
    });
    for (const key of gone) {
      this.lines.get(key)?.line.remove();
      this.lines.delete(key);
    }
  }

  /** Returns a row's line, written anew only if something in it is new: what is under the mouse stays. */
  private line(row: Row): HTMLTableRowElement {
    const action = this.action(row);
    const shown = JSON.stringify([row, action]);
    const known = this.lines.get(row[0]);
    if (known?.shown === shown) {
      return known.line;
    }
    const line = known?.line ?? element('tr');
    line.className = `agentvm-is-${row[5]}`;
    line.replaceChildren(...cells(row), this.last(row, action));
    this.lines.set(row[0], { line, shown });
    return line;
  }

  private action(row: Row): 'button' | 'asked' | 'allowed' | '' {
    const [key, time] = row;
    const host = row[12];
    if (!host) {
      return '';
    }
    if (this.store.asked.has(key)) {
      return 'asked';
    }
    return row[13] || time <= (this.store.allowed.get(host) ?? 0) ? 'allowed' : 'button';
  }

  private last(row: Row, action: string): HTMLTableCellElement {
    const cell = element('td', 'agentvm-action');
    if (action === 'allowed') {
      cell.append(element('span', 'agentvm-done', 'allowed now'));
    } else if (action) {
      const button = element('button', '', 'Allow');
      button.title = `%net allow ${row[12]}`;
      button.disabled = action === 'asked';
      button.addEventListener('click', () => this.store.allow(row[0]));
      cell.append(button);
    }
    return cell;
  }
}

function cells(row: Row): HTMLTableCellElement[] {
  const [, time, cell, host, port, verdict, sent, received, duration, protocol, reason, count] = row;
  const texts = [
    clock(time),
    cell,
    host,
    String(port),
    count > 1 ? `${verdict} (${count} times)` : verdict,
    said(sent, 'B'),
    said(received, 'B'),
    duration === null ? 'open' : `${duration.toFixed(1)} s`,
    verdict === 'allowed' ? protocol : reason
  ];
  return texts.map((text, place) => {
    const made = element('td', `agentvm-${HEAD[place]}`, text);
    made.title = text;
    return made;
  });
}
