/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What reference.c changes in our programs. */
#pragma once

#pragma clang section rodata = ".rodata.config"

#define cfg_nodeport_min __config_nodeport_port_min
#define cfg_nodeport_max __config_nodeport_port_max
#define cfg_local_redirect __config_enable_lrp
#define cfg_reject_no_backend __config_enable_no_service_endpoints_routable
#define revsk_config reference_config
#define revsk_metrics reference_metrics

#include "config.h"
#define current_mode() REVSK_MODE_LEGACY

#define revsk_connect4 cil_sock4_connect
#define revsk_connect6 cil_sock6_connect
#define revsk_sendmsg4 cil_sock4_sendmsg
#define revsk_sendmsg6 cil_sock6_sendmsg
#define revsk_recvmsg4 cil_sock4_recvmsg
#define revsk_recvmsg6 cil_sock6_recvmsg
#define revsk_getpeername4 cil_sock4_getpeername
#define revsk_getpeername6 cil_sock6_getpeername
#define revsk_bind4 cil_sock4_pre_bind
#define revsk_bind6 cil_sock6_pre_bind
#define revsk_post_bind4 cil_sock4_post_bind
#define revsk_post_bind6 cil_sock6_post_bind
#define revsk_release cil_sock_release
