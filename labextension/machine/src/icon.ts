import { LabIcon } from '@jupyterlab/ui-components';

/** A machine in a machine. */
export const icon = new LabIcon({
  name: 'agentvm-kernel:machine',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 22 22">
  <g class="jp-icon3" fill="#616161">
    <path d="M3 3h16v12H3zm2 2v8h12V5zM8 17h6v2H8z"/>
    <path d="M8 7h6v4H8z"/>
  </g>
</svg>`
});
