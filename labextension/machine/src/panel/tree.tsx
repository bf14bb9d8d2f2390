// The tree of snapshots: only the rows in sight are drawn; it is one stop of the Tab key, and the arrow keys move in it.

import type { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { age, bytes } from '../model/figures.ts';
import { ORIGIN, PRESENT, type Layout, type Row } from '../model/lanes.ts';
import { beginning, plain } from '../model/plain.ts';
import { useShared } from './shared.ts';

/** Pixels: of a row, of a lane, and of all lanes at most, which are closer together where they are many. */
const HEIGHT = 40;
const LANE = 14;
const WIDEST = 70;
/** Lanes that are drawn apart; those beyond share the last. */
const LANES = 9;
/** Rows that are drawn above and below those in sight. */
const SPARE = 6;
/** Rows that are in sight at most. */
const TALL = 11;

interface Props {
  layout: Layout;
  selected: string;
  onSelect: (id: string) => void;
  onOpen: (id: string) => void;
  onMenu: (row: Row, place: HTMLElement, x: number, y: number) => void;
  now: number;
  /** The machine runs. */
  isThere: boolean;
}

export const Tree = React.memo(function Tree(props: Props): React.ReactElement {
  const { layout, selected, onSelect, onOpen, onMenu, now, isThere } = props;
  const { trans } = useShared().shared;
  const { rows } = layout;
  const frame = React.useRef<HTMLDivElement>(null);
  const [top, setTop] = React.useState(0);
  const [hasFocus, setFocus] = React.useState(false);
  const at = Math.max(rows.findIndex(row => row.id === selected), 0);
  const tall = Math.min(rows.length, TALL) * HEIGHT;
  const first = Math.max(Math.floor(top / HEIGHT) - SPARE, 0);
  const last = Math.min(Math.ceil((top + tall) / HEIGHT) + SPARE, rows.length);
  const shown = rows.slice(first, last).map((_, place) => first + place);
  if (at < first || at >= last) {
    shown.push(at); // so that the Tab key and the focus have where to be
  }

  React.useLayoutEffect(() => {
    if (hasFocus) {
      frame.current?.querySelector<HTMLElement>('[tabindex="0"]')?.focus({ preventScroll: true });
    }
  }, [at, hasFocus]);

  const move = (to: number): void => {
    const place = Math.min(Math.max(to, 0), rows.length - 1);
    const box = frame.current;
    if (box) {
      box.scrollTop = Math.min(Math.max(box.scrollTop, (place + 1) * HEIGHT - tall), place * HEIGHT);
    }
    onSelect(rows[place].id);
  };
  const steps: Record<string, () => void> = {
    ArrowUp: () => move(at - 1),
    ArrowDown: () => move(at + 1),
    PageUp: () => move(at - TALL),
    PageDown: () => move(at + TALL),
    Home: () => move(0),
    End: () => move(rows.length - 1),
    ArrowLeft: () => move(rows[at].parent),
    ArrowRight: () => move(rows[at].child),
    Enter: () => onOpen(rows[at].id)
  };
  const openMenu = (place: HTMLElement, x: number, y: number): void => {
    const row = rows[Number(place.dataset.place)];
    if (row && row.id !== ORIGIN) {
      onSelect(row.id);
      onMenu(row, place, x, y);
    }
  };

  return (
    <div
      ref={frame}
      className="avm-tree"
      style={{ height: tall }}
      role="tree"
      aria-label={trans.__('Snapshots, newest first')}
      onScroll={event => setTop(event.currentTarget.scrollTop)}
      onFocus={() => setFocus(true)}
      onBlur={() => setFocus(false)}
      onContextMenu={event => {
        const place = (event.target as HTMLElement).closest<HTMLElement>('.avm-row');
        event.preventDefault();
        event.stopPropagation();
        if (place) {
          // A key opens it below the row, which has the focus; the pointer, where it is.
          const box = place.getBoundingClientRect();
          const isOfKey = event.button !== 2;
          openMenu(place, isOfKey ? box.left + LANE : event.clientX, isOfKey ? box.bottom : event.clientY);
        }
      }}
      onKeyDown={event => {
        const step = event.ctrlKey || event.altKey || event.metaKey ? undefined : steps[event.key];
        if (step) {
          event.preventDefault();
          event.stopPropagation();
          step();
        }
      }}
    >
      <div style={{ height: rows.length * HEIGHT }}>
        {shown.map(place => (
          <Line
            key={rows[place].id || 'origin'}
            row={rows[place]}
            place={place}
            count={rows.length}
            width={layout.width}
            isSelected={place === at}
            onSelect={onSelect}
            onOpen={onOpen}
            title={titleOf(rows[place], isThere, trans)}
            origin={originOf(rows, place, isThere, trans)}
            ago={agoOf(rows[place], now, trans)}
          />
        ))}
      </div>
    </div>
  );
});

const Line = React.memo(function Line(props: {
  row: Row;
  place: number;
  count: number;
  width: number;
  isSelected: boolean;
  onSelect: (id: string) => void;
  onOpen: (id: string) => void;
  title: string;
  origin: string;
  ago: string;
}): React.ReactElement {
  const { row, place, count, width, isSelected, onSelect, onOpen, title, origin, ago } = props;
  const isPresent = row.id === PRESENT;
  return (
    <div
      className={`avm-row ${row.isOnPath ? 'avm-on-path' : 'avm-left'} ${isPresent ? 'avm-present' : ''}`}
      style={{ transform: `translateY(${place * HEIGHT}px)` }}
      role="treeitem"
      aria-level={row.lane + 1}
      aria-setsize={count}
      aria-posinset={place + 1}
      aria-selected={isSelected}
      aria-current={isPresent ? 'step' : undefined}
      aria-description={origin}
      tabIndex={isSelected ? 0 : -1}
      data-snapshot={row.snapshot?.id}
      data-place={place}
      onClick={() => onSelect(row.id)}
      onDoubleClick={() => onOpen(row.id)}
    >
      <Lanes row={row} width={width} />
      <div className="avm-row-text" title={`${title}\n${ago}`}>
        <div className={row.snapshot?.label ? 'avm-label' : ''}>{title}</div>
        <div className="avm-faint">{ago}</div>
      </div>
    </div>
  );
});

function Lanes(props: { row: Row; width: number }): React.ReactElement {
  const { row, width } = props;
  const drawn = Math.min(width, LANES);
  const apart = Math.min(LANE, (WIDEST - LANE) / Math.max(drawn - 1, 1));
  const x = (lane: number): number => LANE / 2 + Math.min(lane, LANES - 1) * apart;
  const middle = HEIGHT / 2;
  const here = x(row.lane);
  const kind = (lane: number): string => (lane === 0 ? 'avm-on' : 'avm-off');
  return (
    <svg width={LANE + (drawn - 1) * apart} height={HEIGHT} aria-hidden="true">
      {[...row.passing].reverse().map(lane => (
        <path key={`p${lane}`} className={kind(lane)} d={`M${x(lane)} 0V${HEIGHT}`} />
      ))}
      {[...row.joining].reverse().map(lane => (
        <path
          key={`j${lane}`}
          className={kind(lane)}
          d={`M${x(lane)} 0C${x(lane)} ${middle} ${here} ${middle / 2} ${here} ${middle}`}
        />
      ))}
      {row.descends && <path className={kind(row.lane)} d={`M${here} ${middle}V${HEIGHT}`} />}
      <circle className={kind(row.lane)} cx={here} cy={middle} r={row.snapshot?.label ? 5 : 4} />
    </svg>
  );
}

/** Returns what a row is called. */
export function titleOf(row: Row, isThere: boolean, trans: TranslationBundle): string {
  const { snapshot } = row;
  if (!snapshot) {
    const present = isThere ? trans.__('The machine as it is now') : trans.__('The ended machine');
    return row.id === ORIGIN ? trans.__('The image as it was built') : present;
  }
  return plain(snapshot.label, 64) || beginning(snapshot.cell.code) || snapshot.id;
}

/** Returns what is seen of a row by its lines alone, in words. */
function originOf(rows: readonly Row[], place: number, isThere: boolean, trans: TranslationBundle): string {
  const row = rows[place];
  const way = row.isOnPath ? '' : trans.__('on a branch that was left');
  const parent = row.id === ORIGIN ? '' : trans.__('descends from %1', titleOf(rows[row.parent], isThere, trans));
  return [parent, way].filter(Boolean).join(', ');
}

function agoOf(row: Row, now: number, trans: TranslationBundle): string {
  const { snapshot } = row;
  if (!snapshot) {
    return '';
  }
  const parts = [trans.__('%1 ago', age(now - snapshot.created)), bytes(snapshot.size)];
  if (snapshot.cell.count > 0) {
    parts.push(trans.__('cell [%1]', snapshot.cell.count));
  }
  if (snapshot.label && snapshot.cell.code) {
    parts.push(beginning(snapshot.cell.code, 40));
  }
  if (!snapshot.stored) {
    parts.push(trans.__('being stored'));
  }
  return parts.join(' · ');
}
